"""A tiny run of pgjax.train in one or two processes, as seen from outside, for faults/*.py."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# As tests/conftest.py: LLVM's optimizations cost more than they save.
FLAGS = "--xla_force_host_platform_device_count=1"
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.12.")):
  FLAGS += " --xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import tiny_run  # noqa: E402

from pgjax.checkpoints import workdir as workdir_lib  # noqa: E402

MARK = "PGJAX_FAULTS_RUN"  # In the environment of all processes of a run.
RANKS = ("PGJAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK")
LAUNCHERS = ("launch/local.py", "launch/mpi.sh", "mpirun")
# Evaluations at 20, 40 and 60; saved at 25, 50, 60 and where the score is the best so far.
EVERY = 20
SETTINGS = {
  "keep_last": 1,
  "keep_best": "val/acc",
  "evals.val.log_steps": EVERY,
  "evals.val.data": dict(name="easy_vqa", split="train[60:180]"),
}
ABOUT_A_STOP = re.compile(r"Stopped by|error:|has ended|has been silent|waited \d+ s")
TRACE = re.compile(
  r"Traceback|terminate called|FATAL|Check failed|Fatal Python|Exception ignored|core dumped"
  r"|^\s*@ +0x|leaked|relaunching|\*\*\* |^[EF]\d{4} ",
  re.MULTILINE,
)
SAVING = "checkpoints/*tmp*"


def command(workdir, *, slow="", flags=(), **settings):
  """The arguments of Python; slow: PHASE=SECONDS of slow.py."""
  program = [*tiny_run.train_arguments(workdir, **(SETTINGS | settings)), *flags]
  return ["tests/faults/slow.py", *slow.split("="), *program] if slow else program


def environment(cache=None):
  """Of every process; cache: a folder of its own for compiled programs."""
  own = dict(JAX_COMPILATION_CACHE_DIR=str(cache)) if cache else {}
  return os.environ | tiny_run.environment(devices=1) | own


class Run:
  """One or two processes of a run, and what they print."""

  def __init__(self, workdir, commands, environments, count):
    """commands: one of a launcher or an only process, or one of each process by hand."""
    self.workdir, self.output, self.token = workdir, "", secrets.token_hex(8)
    self.count = count
    self.started = [
      subprocess.Popen(
        each,
        cwd=ROOT,
        env=env | {MARK: self.token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
      )
      for each, env in zip(commands, environments, strict=True)
    ]
    self._readers = [threading.Thread(target=self._read, args=(p,)) for p in self.started]
    for reader in self._readers:
      reader.start()

  def _read(self, process):
    for line in process.stdout:
      self.output += line

  def pid(self, index):
    """The process number of a process of the run; None if there is none."""
    for pid in self.alive():
      environ, arguments = _environ(pid), _arguments(pid)
      is_run = "pgjax.train" in arguments and not any(a in LAUNCHERS for a in arguments)
      if is_run and [environ[name] for name in RANKS if name in environ] in ([str(index)], []):
        return pid
    return None

  def alive(self):
    """The numbers of all processes of the run, launchers and data workers too."""
    return [pid for pid in _all_pids() if _environ(pid).get(MARK) == self.token]

  def rows(self):
    """How many steps are logged."""
    path = self.workdir / "metrics.jsonl"
    return path.read_text().count("training_loss") if path.exists() else 0

  def wait(self, until=lambda: False, seconds=300.0):
    """Whether `until` was true before all started programs ended."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in self.started):
      if until():
        return True
      if time.monotonic() > deadline:
        raise TimeoutError(f"{seconds:.0f} s are over; the output so far:\n{self.output}")
      time.sleep(0.002)
    return False

  def finish(self, seconds=300.0):
    """The exit statuses; what is left of the run then is not killed."""
    self.wait(seconds=seconds)
    for process in self.started:
      process.wait()
    deadline = time.monotonic() + 2
    for reader in self._readers:  # They end when nobody holds the pipe any longer.
      reader.join(max(0.0, deadline - time.monotonic()))
    return [process.returncode for process in self.started]

  def left(self, seconds):
    """The processes that are left after so many more seconds at most."""
    deadline = time.monotonic() + seconds
    while (left := self.alive()) and time.monotonic() < deadline:
      time.sleep(0.05)
    return left

  def clean_up(self):
    """Ends everything."""
    for pid in self.alive():
      with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    self.finish(30)

  def at(self, phase):
    """A condition: whether the run is in this phase."""
    evaluated = 2 * EVERY
    return dict(
      importing=self._all_take_signals,
      loading=lambda: "parameters" in self.output and "sharding" in self.output,
      compiling=lambda: "First example" in self.output,
      stepping=lambda: self.rows() >= EVERY + 2,
      evaluating=lambda: self.rows() >= evaluated,
      saving=lambda: self.rows() > EVERY and list(self.workdir.glob(SAVING)),
    )[phase]

  def _all_take_signals(self):
    pids = [self.pid(i) for i in range(self.count)]
    return None not in pids and all(map(_takes_signals, pids))


def alone(workdir, *, cache=None, **options):
  """One process."""
  return Run(workdir, [[sys.executable, *command(workdir, **options)]], [environment(cache)], 1)


def local(workdir, *, cache=None, **options):
  """Two processes of launch/local.py."""
  launcher = [sys.executable, "launch/local.py", "--processes=2", "--devices=1", "--"]
  return Run(workdir, [[*launcher, *command(workdir, **options)]], [environment(cache)], 2)


def by_hand(workdir, *, cache=None, prefixes=((), ()), host="127.0.0.1", **options):
  """Two processes that no launcher watches; prefixes: of their commands, for other hosts."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"{host}:{probe.getsockname()[1]}"
  names = dict(PGJAX_COORDINATOR=address, PGJAX_NUM_PROCESSES="2")
  environments = [environment(cache) | names | dict(PGJAX_PROCESS_ID=str(i)) for i in range(2)]
  program = command(workdir, **options)
  commands = [[*prefix, sys.executable, *program] for prefix in prefixes]
  return Run(workdir, commands, environments, 2)


def mpirun(workdir, *, cache=None, **options):
  """Two ranks of Open MPI."""
  launcher = ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "launch/mpi.sh"]
  environ = environment(cache) | dict(PYTHON=sys.executable)
  environ |= dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
  return Run(workdir, [[*launcher, *command(workdir, **options)]], [environ], 2)


def sentences(output):
  """What was printed about the end of the run, a line each."""
  return [line for line in output.splitlines() if ABOUT_A_STOP.search(line)]


def trace(output):
  """The first sign of an error that is no sentence; "" if there is none."""
  found = TRACE.search(output)
  return "" if found is None else output[found.start() : found.start() + 200].replace("\n", " | ")


def on_disk(workdir):
  """(the steps of the workdir, what is wrong with them; "" if nothing)."""
  steps = workdir_lib.steps(workdir) if (workdir / "checkpoints").exists() else []
  try:
    for step in steps:
      workdir_lib.read(workdir / "checkpoints" / str(step))
  except Exception as error:
    return steps, f"step {step}: {error}"
  best = _best(workdir, steps[-1] if steps else 0)
  if best and best not in steps:
    return steps, f"the best, of step {best}, is gone"
  return steps, ""


def _best(workdir, newest):
  """The best step that was saved so far."""
  path, scores = workdir / "metrics.jsonl", {}
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):
      row = json.loads(line)
      if "val/acc" in row and 0 < row["step"] <= newest:
        scores[row["step"]] = row["val/acc"]
  return min(scores, key=lambda step: (-scores[step], step), default=None)


def result(workdir):
  """What must be equal, bit for bit."""
  return (
    tiny_run.losses(workdir),
    tiny_run.state_sums(workdir),
    tiny_run.answers(workdir / "evals/val"),
    workdir_lib.steps(workdir),
  )


def _all_pids():
  return [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]


def _environ(pid):
  """Its variables; empty for what has ended."""
  try:
    lines = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
  except OSError:
    return {}
  return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _arguments(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
  except OSError:
    return []


def _takes_signals(pid):
  """Whether the process has a handler for SIGTERM."""
  with contextlib.suppress(OSError):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    taken = int(re.search(r"SigCgt:\s*(\w+)", text)[1], 16)
    return bool(taken >> (signal.SIGTERM - 1) & 1)
  return False
