"""How many bytes and FLOPs does XLA report for a config's training step on an absent device?

`look` compiles in this process. `Compiler` starts another one, which runs this module and answers
one JSON line with another: environment variables read at JAX's import select the target.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import msgspec
import numpy as np

import pgjax
from pgjax import cache_dir, disk
from pgjax.config import load as config_load, mesh_spec, validate as config_validate
from pgjax.distributed import mesh as mesh_lib, signals
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.layers import remat
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.planning import flops as flops_lib, gpus, hlo, memory, remat_choice, timeline
from pgjax.training import (
  attention_check,
  optimizer,
  state as train_state,
  step as step_lib,
  stochastic_rounding,
)

WHEELS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
# Schedules need the length of a run; the compiled program does not depend on it.
STEPS, EPOCH_STEPS = 10**9, 1000


class Step(msgspec.Struct, frozen=True):
  """Memory, FLOPs and collectives of one training step; bytes are per device."""

  compiled_for: str  # "H100" or "cpu".
  mesh: dict[str, int]
  need: memory.Need
  flops: float  # Model FLOPs of the step, over all devices.
  executed_flops: float  # Of one device, recomputation included.
  collectives: list[hlo.Collective]
  seconds: float  # Of compilation.
  schedule: list[timeline.Event] = []  # Empty if compiled for the CPU.
  remat: str = ""  # The policy.
  attention: str = ""  # Which implementation each tower uses, and why.

  @property
  def num_devices(self) -> int:
    """Devices of the mesh."""
    return math.prod(self.mesh.values())


def can_compile_for_gpus() -> bool:
  """Whether XLA's GPU compiler is installed (requirements-plan.txt)."""
  with contextlib.suppress(ModuleNotFoundError):  # No package jax_plugins.
    return any(importlib.util.find_spec(name) is not None for name in WHEELS)
  return False


def look(
  config: Any,
  gpu: str | None,
  num_devices: int,
  *,
  hosts: int = 1,
  compiled: bool = True,
  limit_bytes: float | None = None,
) -> Step:
  """Compiles the step of a checked config; gpu: a name of planning/gpus.py, or None for this CPU.

  hosts: how many have num_devices together. With compiled=False only shapes are used: no FLOPs,
  and no temporaries but the gradients. limit_bytes: of a device, for remat="auto", which is
  "balanced" without.
  """
  if gpu and config.opt_state_memory == "host":
    raise UserError(
      'config.opt_state_memory="host" cannot be compiled without the GPU. Plan with '
      "--config.opt_state_memory=device and subtract nine tenths of the optimizer state."
    )
  from pgjax.planning import mesh_choice  # Which needs shapes from here.

  known = gpus.GPUS[gpu or "H100"]
  config = mesh_choice.on(config, num_devices, known, known.memory_bytes)
  sizes = mesh_spec.sizes(config.mesh, num_devices, num_devices // hosts)
  mesh = mesh_lib.make_mesh(list(sizes.items()), devices(gpu, num_devices, hosts))
  mesh_lib.check_batch_size(config.input.batch_size, mesh, microbatches=config.microbatches)
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  trained = of_model.trained_shapes(model, config)
  stochastic_rounding.check(config, trained)
  tx = optimizer.make(config, STEPS, trained, num_examples=EPOCH_STEPS * config.input.batch_size)
  state = train_state.abstract_state(model, tx, config, mesh)
  batch = abstract_batch(config, mesh)
  run = remat_choice.planned(config, model, state, batch, mesh.size)
  policy = remat.chosen(config.remat, config.dtype, mesh.size)
  if not compiled:
    return Step(gpu or "cpu", dict(mesh.shape), run.need, 0.0, 0.0, [], 0.0, remat=policy)
  attention_check.check_asked(model, config, mesh)
  start = time.monotonic()

  def attempt(policy):
    with_policy = model.clone(remat=policy)
    program = step_lib.jitted(with_policy, tx, config, mesh).lower(state, batch).compile()
    return run.need.with_temporaries(program.memory_analysis().temp_size_in_bytes), program

  if config.remat == remat.AUTO and limit_bytes:
    policy, need, program, _ = remat_choice.choose(run, attempt, limit_bytes)
  else:
    need, program = attempt(policy)
  chunks = memory.loss_chunks(config, batch, leaves.rules)[1]
  text = program.as_text()
  return Step(
    compiled_for=gpu or "cpu",
    mesh=dict(mesh.shape),
    need=need,
    flops=flops_lib.of_step(config, model, leaves),
    executed_flops=hlo.product_flops(text, chunks),
    collectives=hlo.collectives(text, mesh.shape, chunks) if mesh.size > 1 else [],
    seconds=time.monotonic() - start,
    schedule=timeline.of_program(text, known, mesh.shape, num_devices // hosts, chunks)
    if gpu
    else [],
    remat=policy,
    attention=attention_check.described(attention_check.choices(model, config, mesh)),
  )


def abstract_batch(config: Any, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a training batch of data/pipeline.py, from the config only."""
  image, _ = of_model.example_shapes(config)
  shapes = {"image": (image.shape[1:], np.float32)}
  if config.num_frames:
    shapes["image_mask"] = ((config.num_frames,), np.bool_)
  text = ((config.text_len + 1,), np.int32)
  shapes |= dict(text=text, mask_ar=text, mask_loss=text)
  rows, sharding = config.input.batch_size, mesh_lib.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
    for name, (shape, dtype) in shapes.items()
  }


def devices(gpu: str | None, num_devices: int, hosts: int = 1) -> list[Any]:
  """N devices of one kind; the GPUs are descriptions to compile for."""
  if gpu is None:
    return jax.devices()[:num_devices]
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(
    platform="cuda",
    target_config=gpus.target_config(gpu),
    topology=f"1x{hosts}x{num_devices // hosts}",
  )
  return list(topology.devices)


class Compiler:
  """A process that compiles for one kind of device, until `close`."""

  def __init__(self, gpu: str | None, num_devices: int):
    """gpu: a name of gpus.py, or None for the CPU with at most num_devices simulated devices."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    if gpu is None:
      environment["JAX_PLATFORMS"] = "cpu"
      flag = f"--xla_force_host_platform_device_count={num_devices}"
      environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    else:
      environment |= gpus.ENVIRONMENT
    self._gpu = gpu
    # Not a pipe: it would fill up and block the process.
    self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, "-m", "pgjax.planning.compiler"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
      text=True,
      env=environment,
      cwd=pathlib.Path(pgjax.__path__[0]).resolve().parent,
    )
    self._stop = signals.of_process()
    self._stop.clean_up.append(self._process.kill)

  def close(self) -> None:
    """Kills the process."""
    self._stop.clean_up.remove(self._process.kill)
    self._process.kill()
    self._process.communicate()
    self._stderr.close()

  def step(
    self,
    config: Any,
    num_devices: int,
    *,
    hosts: int = 1,
    compiled: bool = True,
    limit_bytes: float | None = None,
  ) -> Step:
    """As `look`; compiled steps are cached in files. A mistake in the config raises UserError."""
    case = dict(config=config.to_dict(), gpu=self._gpu, num_devices=num_devices)
    case |= dict(hosts=hosts, compiled=compiled)
    case["limit_bytes"] = limit_bytes if config.remat == remat.AUTO else None
    cached = _cache_file(case) if compiled else None
    if cached and cached.is_file():
      with contextlib.suppress(UserError):  # Damaged: compiled once more.
        return typed_json.read(cached, Step)
    print(json.dumps(case), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    if not line:
      self._stderr.seek(0)
      words = self._stderr.read().decode(errors="replace").split()[-60:]
      raise UserError(f"The compiler's process ended; its last output: {' '.join(words)}")
    answer = json.loads(line)
    if "error" in answer:
      raise UserError(answer["error"])
    if cached:
      with contextlib.suppress(OSError):  # A full disk: compiled again next time.
        disk.replace(cached, line)
    return typed_json.decode(line, Step, "the compiler's process")


def _cache_file(case: Mapping[str, Any]) -> pathlib.Path | None:
  """Named by a hash of everything the step depends on, versions and sources included."""
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
  """Answers the cases on stdin, one a line; ends with the process that started it."""
  signals.end_with(os.getppid())
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Other output must not get between the answers.
  for answer in map(_answer, sys.stdin):
    print(answer, file=out, flush=True)


def _answer(line: str) -> str:
  case = json.loads(line)
  try:
    config = config_validate.validated(config_load.from_dict(case["config"]))
    how = {name: case[name] for name in ("hosts", "compiled", "limit_bytes")}
    step = look(config, case["gpu"], case["num_devices"], **how)
    jax.clear_caches()
    return msgspec.json.encode(step).decode()
  except UserError as e:
    return json.dumps({"error": str(e)})
  except Exception as e:
    message = " ".join(str(e).split())[:400]
    kind = case["gpu"] or "CPU"
    return json.dumps({"error": f"The step could not be compiled for {kind}: {message}"})


if __name__ == "__main__":
  serve()
