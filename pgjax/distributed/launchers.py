"""Which launcher started this process, and as which of how many? Only environment variables decide.

`detect` knows launch/local.py and hand-set PGJAX_* variables, torchrun, Open MPI, Slurm, Kubernetes
JobSet and SkyPilot, in this order, the first with several processes. A shell inside an allocation
is not one of its tasks, and variables that say nothing about the number of processes are ignored.
This module imports no JAX: a half-set environment is reported at once.
"""

import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pgjax.errors import UserError

Environ = Mapping[str, str]
PORT = 55527  # Of the coordinator, where the launcher names none; JAX uses it on Kubernetes, too.
PGJAX = ("PGJAX_COORDINATOR", "PGJAX_NUM_PROCESSES", "PGJAX_PROCESS_ID")
# What jax.distributed needs to detect Slurm.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
TORCH = ("MASTER_ADDR", "RANK", "WORLD_SIZE")
JOBSET = ("JOBSET_COORDINATOR", "JOBSET_NUM_PROCESSES", "JOB_COMPLETION_INDEX")
SKYPILOT = ("SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")
TORCHRUN, OPEN_MPI = "torchrun", "Open MPI"
OUTLIVED = (TORCHRUN, OPEN_MPI)  # If they are killed, their processes must end by themselves.


class Launch(NamedTuple):
  """This process among those that were started together."""

  launcher: str = ""  # For people: "Slurm (job 12)".
  count: int = 1
  index: int = 0
  coordinator: str | None = None  # host:port of process 0; None if JAX detects it.
  method: str = "deactivate"  # jax.distributed's cluster_detection_method.
  port: int = 0  # Of the coordinator.
  devices: tuple[int, ...] | None = ()  # GPUs of its host; () for all, None for JAX's choice.
  notes: tuple[str, ...] = ()  # What was ignored.

  def report(self) -> list[tuple[int, str]]:
    """(level, sentence) for the log: what was detected, by the first process, and what ignored."""
    lines = [(logging.WARNING, note) for note in self.notes]
    if self.index == 0 and self.launcher:
      lines.insert(0, (logging.INFO, self._sentence()))
    return lines

  def _sentence(self) -> str:
    if self.count == 1:
      return f"One process, started by {self.launcher}."
    where = f", coordinator {self.coordinator}" if self.coordinator else ""
    gpus = f", GPUs {', '.join(map(str, self.devices))} of its host" if self.devices else ""
    return f"Process 0 of {self.count}, started by {self.launcher}{where}{gpus}."


def detect(environ: Environ | None = None, gpus: int | None = None) -> Launch:
  """The launch that the environment describes; raises UserError if it is half set or contradictory.

  gpus: how many this process sees, if not those of the environment.
  """
  environ = os.environ if environ is None else environ
  gpus = visible_gpus(environ) if gpus is None else gpus
  alone = Launch()
  for launcher in _LAUNCHERS:
    launch = launcher(environ, gpus)
    if launch is not None and launch.count > 1:
      if launch.coordinator:
        return launch._replace(port=_port_of(launch.coordinator))
      return launch
    alone = alone if alone.launcher else launch or alone
  notes = (_slurm_note(environ), _job_note(environ), _torch_note(environ))
  return alone._replace(notes=tuple(note for note in notes if note))


def is_first() -> bool:
  """Whether this process is the one that prints; it is where the environment is wrong."""
  try:
    return detect(gpus=0).index == 0
  except UserError:
    return True


def visible_gpus(environ: Environ) -> int:
  """The NVIDIA GPUs that this process sees."""
  if "CUDA_VISIBLE_DEVICES" in environ:
    return len([name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()])
  return len([path for path in pathlib.Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])


def _pgjax(environ: Environ, gpus: int) -> Launch | None:
  del gpus
  if not any(environ.get(name) for name in PGJAX):
    return None
  _check_all(environ, PGJAX, "; set all three of them, or none")
  count, index = _count_and_index(environ, *PGJAX[1:])
  return Launch("the PGJAX_* variables", count, index, environ["PGJAX_COORDINATOR"])


def _torchrun(environ: Environ, gpus: int) -> Launch | None:
  return _torch(environ, gpus) if environ.get("TORCHELASTIC_RUN_ID") else None


def _torch(environ: Environ, gpus: int) -> Launch | None:
  """RANK or WORLD_SIZE alone may mean anything, and MASTER_ADDR may be left from elsewhere."""
  given = [name for name in TORCH if environ.get(name)]
  if len(given) < 2 or environ.get("WORLD_SIZE") == "1":
    return None
  _check_all(environ, TORCH)
  count, index = _count_and_index(environ, "WORLD_SIZE", "RANK")
  # torchrun itself listens on MASTER_PORT.
  port = _number(environ, "MASTER_PORT", 29500) + bool(environ.get("TORCHELASTIC_RUN_ID"))
  launcher = TORCHRUN if environ.get("TORCHELASTIC_RUN_ID") else "MASTER_ADDR, RANK, WORLD_SIZE"
  local = _number(environ, "LOCAL_RANK", 0), _number(environ, "LOCAL_WORLD_SIZE", 1)
  coordinator = _address(environ, environ["MASTER_ADDR"], port)
  return Launch(launcher, count, index, coordinator, devices=_share(environ, *local, gpus))


def _open_mpi(environ: Environ, gpus: int) -> Launch | None:
  """Version 4 names mpirun's host in a variable that JAX reads, version 5 does not."""
  if not any(environ.get(name) for name in MPI):
    return None
  _check_all(environ, MPI)
  count, index = _count_and_index(environ, *MPI)
  local_index = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", 0)
  local_count = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
  devices = _share(environ, local_index, local_count, gpus)
  launch = Launch(OPEN_MPI, count, index, devices=devices)
  if coordinator := environ.get("JAX_COORDINATOR_ADDRESS"):
    return launch._replace(coordinator=coordinator)
  if job := re.match(r"(\d+)\.", environ.get("OMPI_MCA_orte_hnp_uri", "")):
    return launch._replace(method="ompi", port=_port(environ, int(job[1]) // 4096))
  if count == local_count:
    return launch._replace(coordinator=_address(environ, "127.0.0.1", PORT))
  if count == 1:
    return launch
  raise UserError(
    "This Open MPI does not say where rank 0 is: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT,"
    " with the host of rank 0 and a free port."
  )


def _slurm(environ: Environ, gpus: int) -> Launch | None:
  """A task of srun: a batch script and a shell of salloc have no SLURM_STEP_NODELIST."""
  if not environ.get("SLURM_STEP_NODELIST") and environ.get("SLURM_PROCID", "0") == "0":
    return None
  if environ.get("SLURM_STEP_NUM_TASKS") == "1":  # SLURM_NTASKS may be that of the allocation.
    return Launch(f"Slurm (job {environ.get('SLURM_JOB_ID')})")
  _check_all(environ, SLURM, "; start the processes with srun")
  tasks = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
  count, index = _count_and_index(environ, tasks, "SLURM_PROCID")
  launcher = f"Slurm (job {environ['SLURM_JOB_ID']}, nodes {environ['SLURM_STEP_NODELIST']})"
  local_count = _slurm_local_count(environ)
  devices = None
  if local_count:
    own = "SLURM_GPUS_PER_TASK" in environ or gpus < _number(environ, "SLURM_GPUS_ON_NODE", 0)
    local_index = _number(environ, "SLURM_LOCALID", 0)
    devices = () if own else _share(environ, local_index, local_count, gpus)
  coordinator = environ.get("JAX_COORDINATOR_ADDRESS")
  # Steps of one job, such as a run and its evaluation beside it, must not meet on one port.
  steps = 101 * _number(environ, "SLURM_STEP_ID", 0)
  port = _port(environ, _number(environ, "SLURM_JOB_ID", 0) + steps)
  return Launch(launcher, count, index, coordinator, "slurm", port, devices)


def _slurm_local_count(environ: Environ) -> int | None:
  """Tasks on this node, from a list such as "2(x3),1" with the tasks of each node."""
  tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
  node, counts = environ.get("SLURM_NODEID", "0"), []
  for each in tasks.split(","):
    if not (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", each)):
      return None
    counts += [int(match[1])] * int(match[2] or 1)
  return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def _slurm_note(environ: Environ) -> str:
  tasks, step = environ.get("SLURM_NTASKS", "1"), environ.get("SLURM_STEP_NUM_TASKS")
  if step not in (None, "1") or tasks in ("", "1"):
    return ""
  job = environ.get("SLURM_JOB_ID")
  return (
    f"Slurm job {job} has room for {tasks} tasks, but this process is not one of them: it runs"
    " alone. srun starts one on each."
  )


def _jobset(environ: Environ, gpus: int) -> Launch | None:
  del gpus
  if not any(environ.get(name) for name in JOBSET[:2]):
    return None
  _check_all(environ, JOBSET, "; see launch/jobset.yaml, whose Job is Indexed")
  count, index = _count_and_index(environ, *JOBSET[1:])
  coordinator = environ["JOBSET_COORDINATOR"]
  if ":" not in coordinator:
    coordinator = _address(environ, coordinator, PORT)
  return Launch("a Kubernetes JobSet", count, index, coordinator)


def _job_note(environ: Environ) -> str:
  index = environ.get("JOB_COMPLETION_INDEX")
  if not index or any(environ.get(name) for name in JOBSET[:2]):
    return ""
  return (
    f"This is pod {index} of a Kubernetes Job without JOBSET_COORDINATOR and JOBSET_NUM_PROCESSES:"
    " it runs alone. launch/jobset.yaml sets them."
  )


def _skypilot(environ: Environ, gpus: int) -> Launch | None:
  del gpus
  if not environ.get("SKYPILOT_NODE_RANK"):
    return None
  _check_all(environ, SKYPILOT)
  count, index = _count_and_index(environ, *SKYPILOT[1:])
  hosts = environ["SKYPILOT_NODE_IPS"].split()
  if len(hosts) != count:
    raise UserError(
      f"SKYPILOT_NODE_IPS names {len(hosts)} hosts, and SKYPILOT_NUM_NODES={count}: SkyPilot sets"
      " both of them, and nothing else may."
    )
  return Launch("SkyPilot", count, index, _address(environ, hosts[0], PORT))


def _torch_note(environ: Environ) -> str:
  given = [name for name in TORCH if environ.get(name)]
  if len(given) != 1:
    return ""
  missing = " and ".join(name for name in TORCH if name not in given)
  return f"{given[0]} is ignored: without {missing} it does not say how many processes there are."


# PyTorch's variables without torchrun are last: scripts export them for other programs, too.
_LAUNCHERS: tuple[Callable[[Environ, int], Launch | None], ...] = (
  _pgjax,
  _torchrun,
  _open_mpi,
  _slurm,
  _jobset,
  _skypilot,
  _torch,
)


def _check_all(environ: Environ, names: tuple[str, ...], hint: str = "") -> None:
  given = [name for name in names if environ.get(name)]
  if len(given) < len(names):
    missing = ", ".join(name for name in names if name not in given)
    raise UserError(f"{given[0]} is set, but not {missing}{hint}.")


def _count_and_index(environ: Environ, count_name: str, index_name: str) -> tuple[int, int]:
  count, index = environ[count_name], environ[index_name]
  if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
    raise UserError(
      f"{count_name}={count} and {index_name}={index} must be whole numbers, the second smaller"
      " than the first."
    )
  return int(count), int(index)


def _number(environ: Environ, name: str, default: int) -> int:
  text = environ.get(name) or str(default)
  if not text.isdecimal():
    raise UserError(f"{name}={text} must be a whole number.")
  return int(text)


def _port_of(coordinator: str) -> int:
  port = coordinator.rpartition(":")[2]
  if not re.fullmatch(r"\S+:\d{1,5}", coordinator) or not 0 < int(port) < 65536:
    raise UserError(
      f"The coordinator {coordinator} must be a host and a port, such as 10.0.0.1:1234."
    )
  return int(port)


def _port(environ: Environ, job: int) -> int:
  """As JAX: of the highest ones, by the job's number."""
  return _number(environ, "JAX_COORDINATOR_PORT", 61440 + job % 4096)


def _address(environ: Environ, host: str, port: int) -> str:
  """host:port; JAX's own two variables have precedence."""
  port = _number(environ, "JAX_COORDINATOR_PORT", port)
  host = f"[{host}]" if ":" in host and not host.startswith("[") else host
  return environ.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}"


def _share(
  environ: Environ, local_index: int, local_count: int, gpus: int
) -> tuple[int, ...] | None:
  """This process's GPUs, of those that all `local_count` processes of the host see.

  A launcher that gives each process GPUs of its own leaves it fewer than there are processes, and
  one process a host takes all.
  """
  if environ.get("JAX_LOCAL_DEVICE_IDS"):
    return None  # JAX reads it.
  if local_count == 1 or gpus < local_count:
    return ()
  if gpus % local_count:
    raise UserError(
      f"{gpus} GPUs cannot be shared evenly by the {local_count} processes of this host; start one"
      " process for all of them, or a number that divides them."
    )
  each = gpus // local_count
  return tuple(range(local_index * each, (local_index + 1) * each))
