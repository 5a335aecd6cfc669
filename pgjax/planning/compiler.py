"""What does XLA say about the training step of a config, compiled for devices that are not here?

`look` compiles one case in this process. `Compiler` asks a process of its own, because what a
process can compile for is settled by environment variables when it imports JAX; that process runs
this module, which reads cases and writes answers, a line of JSON each.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict, get_type_hints

import jax
import numpy as np

import pgjax
from pgjax import cache_dir
from pgjax.config import load as config_load, validate as config_validate
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.planning import flops as flops_lib, gpus, hlo, memory
from pgjax.training import optimizer, state as train_state, step as step_lib, stochastic_rounding

WHEELS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")  # What an installed compiler brings.
# Schedules need the length of a run; what is compiled does not depend on it.
STEPS, EPOCH_STEPS = 10**9, 1000


class Step(NamedTuple):
  """What is known about one step; all bytes are of one device."""

  compiled_for: str  # "H100" or "cpu".
  mesh: dict[str, int]
  need: memory.Need
  flops: float  # Model FLOPs of the step, over all devices.
  executed_flops: float  # Of one device, with what is computed twice.
  collectives: list[hlo.Collective]
  seconds: float  # Of compilation.

  def to_json(self) -> str:
    """One line."""
    parts = dict(need=self.need._asdict(), collectives=[c._asdict() for c in self.collectives])
    return json.dumps(self._asdict() | parts)

  @classmethod
  def from_json(cls, line: str, where: Any) -> "Step":
    """The inverse of `to_json`."""
    fields = typed_json.decode(line, _STEP, where)
    return cls(**fields | dict(
      need=memory.Need(**fields["need"]),
      collectives=[hlo.Collective(**c) for c in fields["collectives"]],
    ))  # fmt: skip


def _typed(kind: Any, **fields: Any) -> Any:
  """A named tuple as the JSON object that `to_json` makes of it."""
  hints = {name: typed_json.Count if t is int else t for name, t in get_type_hints(kind).items()}
  return TypedDict(kind.__name__, hints | fields)


_STEP = _typed(Step, need=_typed(memory.Need), collectives=list[_typed(hlo.Collective)])


def can_compile_for_gpus() -> bool:
  """Whether XLA's GPU compiler is installed (requirements-plan.txt)."""
  with contextlib.suppress(ModuleNotFoundError):  # There is no jax_plugins at all.
    return any(importlib.util.find_spec(name) is not None for name in WHEELS)
  return False


def look(config: Any, gpu: str | None, num_devices: int, *, compiled: bool = True) -> Step:
  """Compiles the step of a checked config; gpu: a name of planning/gpus.py, or None for this CPU.

  Not compiled, it is known by its shapes alone: without FLOPs and what it makes on the way.
  """
  if gpu and config.opt_state_memory == "host":
    raise UserError(
      'config.opt_state_memory="host": nothing can be placed on the host of a GPU that is not '
      "here. Plan with --config.opt_state_memory=device, and take off the optimizer state but for "
      "a tenth."
    )
  mesh = mesh_lib.make_mesh(config.mesh, devices(gpu, num_devices))
  mesh_lib.check_batch_size(config.input.batch_size, mesh)
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  rules = leaves.rules
  trained = of_model.trained_shapes(model, config)
  stochastic_rounding.check(config, trained)
  tx = optimizer.make(config, STEPS, trained, num_examples=EPOCH_STEPS * config.input.batch_size)
  state = train_state.abstract_state(model, tx, config, mesh)
  batch = abstract_batch(config, mesh)
  known = functools.partial(memory.need, config, model, state, batch, rules)
  if not compiled:
    return Step(gpu or "cpu", dict(mesh.shape), known(None), 0.0, 0.0, [], 0.0)
  start = time.monotonic()
  program = step_lib.jitted(model, tx, config, mesh).lower(state, batch).compile()
  chunks = memory.loss_chunks(config, batch, rules)[1]
  text = program.as_text()
  temporaries = program.memory_analysis().temp_size_in_bytes
  return Step(
    compiled_for=gpu or "cpu",
    mesh=dict(mesh.shape),
    need=known(temporaries),
    flops=flops_lib.of_step(config, model, leaves),
    executed_flops=hlo.product_flops(text, chunks),
    collectives=hlo.collectives(text, mesh.shape, chunks) if mesh.size > 1 else [],
    seconds=time.monotonic() - start,
  )


def abstract_batch(config: Any, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """A training batch as data/pipeline.py makes it, from the sizes in the config alone."""
  place, rows = mesh_lib.batch_sharding(mesh), config.input.batch_size
  image, _ = of_model.example_shapes(config)
  shapes = {"image": (image.shape[1:], np.float32)}
  if config.num_frames:
    shapes["image_mask"] = ((config.num_frames,), np.bool_)
  shapes |= {
    "text": ((config.text_len + 1,), np.int32),
    "mask_ar": ((config.text_len + 1,), np.int32),
    "mask_loss": ((config.text_len + 1,), np.int32),
  }
  return {
    name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)
    for name, (shape, dtype) in shapes.items()
  }


def devices(gpu: str | None, num_devices: int) -> list[Any]:
  """So many devices of a kind; GPUs can only be compiled for."""
  if gpu is None:
    return jax.devices()[:num_devices]
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(
    platform="cuda", target_config=gpus.target_config(gpu), topology=f"1x1x{num_devices}"
  )
  return list(topology.devices)


class Compiler:
  """A process that compiles for one kind of device; use it in a `with` statement."""

  def __init__(self, gpu: str | None, num_devices: int):
    """gpu: a name of gpus.py, or None for the CPU with at most num_devices simulated devices."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    if gpu is None:
      environment["JAX_PLATFORMS"] = "cpu"
      flag = f"--xla_force_host_platform_device_count={num_devices}"
      environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    else:
      environment = gpus.environment(environment)
    self._gpu = gpu
    # Not a pipe: one that nobody reads fills up, and stops the process.
    self._said = tempfile.TemporaryFile()  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, "-m", "pgjax.planning.compiler"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      text=True,
      env=environment,
      cwd=pathlib.Path(pgjax.__path__[0]).resolve().parent,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()
    self._said.close()

  def step(self, config: Any, num_devices: int, *, compiled: bool = True) -> Step:
    """What XLA says; a mistake in the config is told as it would be here.

    What was compiled once, by the same programs, is kept in a file and not compiled again.
    """
    case = dict(config=config.to_dict(), gpu=self._gpu, num_devices=num_devices, compiled=compiled)
    kept = _kept_file(case) if compiled else None
    if kept and kept.is_file():
      with contextlib.suppress(UserError, OSError, UnicodeError):  # Damaged: compiled once more.
        return Step.from_json(kept.read_text(), kept)
    print(json.dumps(case), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    if not line:
      self._said.seek(0)
      words = self._said.read().decode(errors="replace").split()[-60:]
      raise UserError(f"The compiler's process ended; the last that it said is: {' '.join(words)}")
    answer = json.loads(line)
    if "error" in answer:
      raise UserError(answer["error"])
    if kept:
      kept.write_text(line)
    return Step.from_json(line, "the compiler's process")


def _kept_file(case: Mapping[str, Any]) -> pathlib.Path | None:
  """Where the answer is kept: by what the step depends on, versions and sources included."""
  folder = cache_dir.folder("plan")
  if folder is None:
    return None
  fields = dict(case["config"], evals=None, input=case["config"]["input"]["batch_size"])
  versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")]
  key = hashlib.sha256(json.dumps([case | dict(config=fields), versions]).encode())
  for source in sorted(pathlib.Path(pgjax.__path__[0]).rglob("*.py")):
    key.update(source.read_bytes())
  return folder / f"{key.hexdigest()[:32]}.json"


def serve() -> None:
  """Answers the cases on stdin until there are no more."""
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Whatever else is printed does not get between the answers.
  for answer in map(_answer, sys.stdin):
    print(answer, file=out, flush=True)


def _answer(line: str) -> str:
  case = json.loads(line)
  try:
    config = config_validate.validated(config_load.from_dict(case["config"]))
    found = look(config, case["gpu"], case["num_devices"], compiled=case["compiled"])
    jax.clear_caches()  # Of the case before, which nothing needs again.
    return found.to_json()
  except UserError as e:
    return json.dumps({"error": str(e)})
  except Exception as e:
    kind = case["gpu"] or "CPU"
    message = " ".join(str(e).split())[:400]
    return json.dumps({"error": f"The step could not be compiled for {kind}: {message}"})


if __name__ == "__main__":
  serve()
