"""A Slurm of one node and eight CPUs in a folder of its own: munged, slurmctld, slurmd, as root."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
CONF = """
ClusterName=pgjax
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=2
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
  """Why no Slurm can be started here; "" if it can."""
  missing = [name for name in PROGRAMS if not shutil.which(name)]
  if missing:
    return f"needs Debian's slurm-wlm and munge ({', '.join(missing)})"
  return "" if os.getuid() == 0 else "needs root"


def free_ports(count):
  with contextlib.ExitStack() as stack:
    probes = [stack.enter_context(socket.socket()) for _ in range(count)]
    for probe in probes:
      probe.bind(("127.0.0.1", 0))
    return [probe.getsockname()[1] for probe in probes]


class Slurm:
  """As a context: the services. Its folder has their logs."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.environ = os.environ | dict(SLURM_CONF=str(self.folder / "slurm.conf"))

  def __enter__(self):
    munge = self.folder / "munge"
    for path in (self.folder / "state", self.folder / "spool", munge):
      path.mkdir()
    for path in (self.folder, munge):
      path.chmod(0o711)  # munged's socket is for all, its other files are not.
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    text = CONF.format(host=host, folder=self.folder, ports=free_ports(2))
    (self.folder / "slurm.conf").write_text(text)
    files = {name: munge / name for name in ("socket", "pid-file", "log-file", "seed-file")}
    files |= {"pid-file": self.folder / "munged.pid", "key-file": key}
    subprocess.run(
      ["munged", "--force", *(f"--{name}={path}" for name, path in files.items())], check=True
    )
    subprocess.run(["slurmctld"], env=self.environ, check=True)
    subprocess.run(["slurmd"], env=self.environ, check=True)
    self.wait(lambda: "State=IDLE" in self.run("scontrol", "show", "node"), 60, "the node")
    return self

  def __exit__(self, *_):
    self.run("scancel", "--user=root", "--full", "--signal=KILL", check=False)
    self.run("scancel", "--user=root", check=False)
    with contextlib.suppress(TimeoutError):
      self.wait(lambda: not self.run("squeue", "--noheader"), 30, "the jobs")
    for name in ("slurmd", "slurmctld", "munged"):
      with contextlib.suppress(OSError, ValueError):
        os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGTERM)

  def run(self, *command, check=True, **environ):
    ended = subprocess.run(
      command, env=self.environ | environ, capture_output=True, text=True, check=False
    )
    assert not check or ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout.strip()

  def submit(self, *arguments, environ=None):
    """sbatch with these arguments; returns the job's number."""
    return self.run("sbatch", "--parsable", *arguments, **(environ or {}))

  def job(self, number):
    """{"JobState": ..., "Restarts": ..., ...} of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

  def wait_for(self, number, *states, seconds=600):
    """The job once it is in one of these states."""
    return self.wait(
      lambda: (job := self.job(number))["JobState"] in states and job, seconds, f"job {number}"
    )

  def wait(self, ready, seconds, what):
    """The first true value of ready()."""
    deadline = time.monotonic() + seconds
    while not (result := ready()):
      if time.monotonic() > deadline:
        raise TimeoutError(f"{what} after {seconds} s; logs are in {self.folder}")
      time.sleep(0.2)
    return result
