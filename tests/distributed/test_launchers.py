"""Each launcher's variables give the number of processes; half of them are a sentence."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

import pgjax
from pgjax.distributed import launchers, rendezvous
from pgjax.errors import UserError

ROOT = pathlib.Path(pgjax.__path__[0]).parent
PGJAX = dict(PGJAX_COORDINATOR="10.0.0.1:1234", PGJAX_NUM_PROCESSES="4", PGJAX_PROCESS_ID="3")
TORCH = dict(MASTER_ADDR="a", MASTER_PORT="29400", RANK="3", WORLD_SIZE="4")
LOCAL = dict(LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
MPI = dict(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="3")
MPI |= dict(OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_LOCAL_SIZE="2")
URI = dict(OMPI_MCA_orte_hnp_uri="841089024.0;tcp://10.0.0.9:45051")
# Of a batch script and of salloc's shell, in this order; then of a task of srun.
BATCH = dict(SLURM_JOB_ID="12", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0")
SALLOC = dict(SLURM_JOB_ID="12", SLURM_NTASKS="4", SLURM_JOB_NODELIST="n[1-2]")
STEP = BATCH | dict(SLURM_STEP_ID="0", SLURM_STEP_NODELIST="n[1-2]", SLURM_STEP_NUM_TASKS="4")
STEP |= dict(SLURM_STEP_TASKS_PER_NODE="2(x2)", SLURM_PROCID="3", SLURM_LOCALID="1")
STEP |= dict(SLURM_NODEID="1")
INTERACTIVE = STEP | dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_STEP_ID="4294967290")
JOBSET = dict(JOBSET_COORDINATOR="run-workers-0-0.pgjax", JOBSET_NUM_PROCESSES="4")
JOBSET |= dict(JOB_COMPLETION_INDEX="3", KUBERNETES_SERVICE_HOST="10.0.0.1")
SKYPILOT = dict(SKYPILOT_NODE_IPS="10.0.0.5\n10.0.0.6\n10.0.0.7\n10.0.0.8")
SKYPILOT |= dict(SKYPILOT_NUM_NODES="4", SKYPILOT_NODE_RANK="3")


def test_every_launcher_is_recognised():
  sizes = {"TORCHELASTIC_RUN_ID": "none", **LOCAL}
  for environ, launcher, coordinator, port in (
    (PGJAX, "the PGJAX_* variables", "10.0.0.1:1234", 1234),
    (TORCH | sizes, "torchrun", "a:29401", 29401),  # torchrun itself listens on 29400.
    (TORCH, "MASTER_ADDR, RANK, WORLD_SIZE", "a:29400", 29400),
    (MPI | URI, "Open MPI", None, 61440 + 841089024 // 4096 % 4096),
    (MPI | dict(JAX_COORDINATOR_ADDRESS="b:7"), "Open MPI", "b:7", 7),
    (STEP, "Slurm (job 12, nodes n[1-2])", None, 61452),
    (STEP | dict(SLURM_STEP_ID="1"), "Slurm (job 12, nodes n[1-2])", None, 61553),
    (STEP | dict(JAX_COORDINATOR_PORT="99"), "Slurm (job 12, nodes n[1-2])", None, 99),
    (JOBSET, "a Kubernetes JobSet", "run-workers-0-0.pgjax:55527", 55527),
    (SKYPILOT, "SkyPilot", "10.0.0.5:55527", 55527),
    # Several at once: the innermost, and what was set by hand for pgjax.
    (STEP | PGJAX | TORCH, "the PGJAX_* variables", "10.0.0.1:1234", 1234),
    (STEP | TORCH, "Slurm (job 12, nodes n[1-2])", None, 61452),
    (STEP | TORCH | sizes, "torchrun", "a:29401", 29401),
    (STEP | MPI | URI, "Open MPI", None, 61440 + 841089024 // 4096 % 4096),
    (
      SKYPILOT | dict(SLURM_STEP_NUM_TASKS="1", SLURM_STEP_NODELIST="n"),
      "SkyPilot",
      "10.0.0.5:55527",
      55527,
    ),
  ):
    launch = launchers.detect(environ, gpus=0)
    assert (launch.launcher, launch.coordinator, launch.port) == (launcher, coordinator, port)
    assert (launch.count, launch.index) == (4, 3), environ
    assert launch.report() == []  # Only the first process talks.
    [(_, sentence)] = launch._replace(index=0).report()
    assert sentence.startswith(f"Process 0 of 4, started by {launcher}")
  assert launchers.detect({}) == launchers.Launch()


def test_what_is_not_one_of_several_processes():
  ignored = "RANK and WORLD_SIZE"
  for environ, note in (
    (BATCH, "job 12 has room for 4 tasks.*srun"),
    (SALLOC, "job 12 has room for 4 tasks.*srun"),
    (INTERACTIVE, "job 12 has room for 4 tasks.*srun"),
    (STEP | dict(SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="1", SLURM_PROCID="0"), None),
    (dict(JOB_COMPLETION_INDEX="3", KUBERNETES_SERVICE_HOST="1"), "pod 3 of a Kubernetes Job"),
    (dict(KUBERNETES_SERVICE_HOST="10.0.0.1", HOSTNAME="pod"), None),
    (dict(MASTER_ADDR="a", MASTER_PORT="29500"), f"MASTER_ADDR is ignored: without {ignored}"),
    (dict(WORLD_SIZE="8"), "WORLD_SIZE is ignored: without MASTER_ADDR and RANK"),
    (dict(MASTER_ADDR="a", WORLD_SIZE="1"), None),
    (PGJAX | dict(PGJAX_NUM_PROCESSES="1", PGJAX_PROCESS_ID="0"), None),
    (SKYPILOT | dict(SKYPILOT_NUM_NODES="1", SKYPILOT_NODE_RANK="0", SKYPILOT_NODE_IPS="a"), None),
    (dict(OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0"), None),
  ):
    launch = launchers.detect(environ, gpus=0)
    assert (launch.count, launch.index) == (1, 0), environ
    said = [f"One process, started by {launch.launcher}."] if launch.launcher else []
    assert [text for _, text in launch.report()] == [*said, *launch.notes]
    assert len(launch.notes) == (note is not None), environ
    assert not note or re.search(note, launch.notes[0]), launch.notes


def test_half_an_environment_is_one_sentence():
  for environ, names, message in (
    (PGJAX, ["PGJAX_PROCESS_ID"], "but not PGJAX_PROCESS_ID; set all three of them, or none"),
    (PGJAX, ["PGJAX_NUM_PROCESSES", "PGJAX_PROCESS_ID"], "PGJAX_COORDINATOR is set, but not PGJA"),
    (TORCH, ["RANK"], "MASTER_ADDR is set, but not RANK"),
    (TORCH, ["MASTER_ADDR"], "RANK is set, but not MASTER_ADDR"),
    (TORCH | dict(TORCHELASTIC_RUN_ID="x"), ["WORLD_SIZE"], "but not WORLD_SIZE"),
    (MPI, ["OMPI_COMM_WORLD_SIZE"], "OMPI_COMM_WORLD_RANK is set, but not OMPI_COMM_WORLD_SIZE"),
    (MPI, [], "does not say where rank 0 is: mpirun -x JAX_COORDINATOR_ADDRESS"),
    (STEP, ["SLURM_STEP_NODELIST"], "but not SLURM_STEP_NODELIST; start the processes with srun"),
    (STEP, ["SLURM_PROCID"], "SLURM_JOB_ID is set, but not SLURM_PROCID"),
    (JOBSET, ["JOB_COMPLETION_INDEX"], "but not JOB_COMPLETION_INDEX; .* whose Job is Indexed"),
    (JOBSET, ["JOBSET_NUM_PROCESSES"], "but not JOBSET_NUM_PROCESSES"),
    (SKYPILOT, ["SKYPILOT_NODE_IPS"], "SKYPILOT_NUM_NODES is set, but not SKYPILOT_NODE_IPS"),
    (SKYPILOT | dict(SKYPILOT_NUM_NODES="5"), [], "names 4 hosts, and SKYPILOT_NUM_NODES=5"),
    (
      PGJAX | dict(PGJAX_PROCESS_ID="4"),
      [],
      "NUM_PROCESSES=4 and PGJAX_PROCESS_ID=4 must be whole",
    ),
    (
      PGJAX | dict(PGJAX_COORDINATOR="10.0.0.1"),
      [],
      "coordinator 10.0.0.1 must be a host and a por",
    ),
    (TORCH | dict(MASTER_PORT="x"), [], "MASTER_PORT=x must be a whole number"),
  ):
    halved = {name: value for name, value in environ.items() if name not in names}
    with pytest.raises(UserError, match=message):
      launchers.detect(halved, gpus=0)
    assert launchers.is_first()  # Says so.


def test_the_gpus_of_a_host_are_shared_by_its_processes():
  one_a_node = STEP | dict(SLURM_STEP_TASKS_PER_NODE="1(x4)", SLURM_LOCALID="0", SLURM_NODEID="3")
  two = MPI | URI
  for environ, gpus, devices in (
    (one_a_node, 8, ()),  # JAX's own rule would give it one of eight.
    (STEP, 2, (1,)),
    (STEP, 8, (4, 5, 6, 7)),
    (STEP | dict(SLURM_GPUS_ON_NODE="4"), 2, ()),  # Slurm gave each task two of four.
    (STEP | dict(SLURM_GPUS_PER_TASK="2"), 2, ()),
    (STEP | dict(SLURM_STEP_TASKS_PER_NODE="2(x2", SLURM_TASKS_PER_NODE=""), 8, None),
    (STEP | dict(SLURM_STEP_TASKS_PER_NODE="3,1", SLURM_NODEID="0"), 3, (1,)),
    (two, 8, (4, 5, 6, 7)),
    (two, 1, ()),
    (two, 0, ()),
    (two | dict(JAX_LOCAL_DEVICE_IDS="3"), 8, None),
    (TORCH | LOCAL | dict(TORCHELASTIC_RUN_ID="x"), 2, (1,)),
    (TORCH, 8, ()),
    (JOBSET, 8, ()),
    (SKYPILOT, 8, ()),
    (PGJAX | STEP, 8, ()),
  ):
    assert launchers.detect(environ, gpus).devices == devices, environ
  assert "GPUs 4, 5, 6, 7 of its host" in launchers.detect(two, 8)._replace(index=0).report()[0][1]
  with pytest.raises(UserError, match="7 GPUs cannot be shared evenly by the 2 processes"):
    launchers.detect(two, 7)
  assert launchers.visible_gpus(dict(CUDA_VISIBLE_DEVICES="0,2")) == 2
  assert launchers.visible_gpus(dict(CUDA_VISIBLE_DEVICES="")) == 0


def test_a_port_in_use_is_one_sentence():
  with socket.socket() as other:
    other.bind(("", 0))
    other.listen()
    port = other.getsockname()[1]
    launch = launchers.detect(PGJAX | dict(PGJAX_PROCESS_ID="0"), gpus=0)._replace(port=port)
    with pytest.raises(UserError, match=rf"Port {port} of this host, where the 4 processes are to"):
      rendezvous.check_port(launch)
    rendezvous.check_port(launch._replace(index=1))
  rendezvous.check_port(launch)


def test_how_long_to_wait_is_a_whole_number(monkeypatch):
  assert rendezvous.seconds() == 300
  monkeypatch.setenv("PGJAX_JOIN_SECONDS", "2m")
  with pytest.raises(UserError, match="PGJAX_JOIN_SECONDS=2m must be a whole number"):
    rendezvous.seconds()


def test_the_address_towards_the_coordinator():
  assert rendezvous.own_address("127.0.0.1:1234") == ""
  assert isinstance(rendezvous.is_reachable_by_name(), bool)


MISSING = """
import logging, sys; logging.basicConfig(level=logging.INFO)
from pgjax.distributed import processes; processes.join()
"""


@pytest.mark.slow
def test_a_process_that_waits_in_vain_says_so():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  started = []
  for index, host in (("0", "127.0.0.1"), ("1", "no-such-host")):  # They never meet.
    environ = dict(PGJAX_COORDINATOR=f"{host}:{port}", PGJAX_NUM_PROCESSES="2")
    environ |= dict(PGJAX_PROCESS_ID=index, PGJAX_JOIN_SECONDS="3")
    command, pipe = [sys.executable, "-c", MISSING], dict(stderr=subprocess.PIPE, text=True)
    started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, **pipe))
  reasons = ("not all 2 processes came", "this host does not know the name no-such-host")
  for index, (process, reason) in enumerate(zip(started, reasons, strict=True)):
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(rf"error: Process {index} of 2 .* waited 3 s at the start: {reason}", err)
    assert "Check failure" not in err


@pytest.mark.slow
def test_one_process_needs_no_private_part_of_jax(root):
  program = "import sys; from pgjax.distributed import processes; processes.join()"
  program += "; sys.exit('pgjax.distributed.runtime' in sys.modules)"
  environ = {n: v for n, v in os.environ.items() if not n.startswith(("PGJAX_", "SLURM_", "OMPI_"))}
  assert subprocess.run([sys.executable, "-c", program], cwd=root, env=environ).returncode == 0
