"""Which activations can a run store on its devices? What `config.remat="auto"` becomes.

The policies of ORDER are compiled, the fastest first, until the analysis of one fits. One that
cannot fit by its shapes alone is not compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.layers import remat
from pgjax.params import of_model
from pgjax.planning import memory, savings

# Measured on an H100 and modelled: benchmarks/results, docs/memory.md.
ORDER = (
  *("products_saveable", "mlp_gate_saveable", "outputs_saveable", "attention_saveable"),
  *(remat.BALANCED, "least_memory"),
)


class Choice(NamedTuple):
  """A policy, the need and what compiling with it gave, and the reason in a sentence."""

  policy: str
  need: memory.Need
  compiled: Any
  why: str


Attempt = Callable[[str], tuple[memory.Need, Any]]  # Compiles with a policy.


def for_devices(
  config: Any, model: Any, abstract: Any, batch: Any, mesh: Any, compiled: Callable[[str], Any]
) -> Choice:
  """For the devices of this run; compiled(policy) is a program. All processes choose the same.

  A policy that the config names is not questioned, and `why` is empty. Where a device does not
  tell its memory (a CPU), the policy is "balanced".
  """
  run = planned(config, model, abstract, batch, mesh.size)

  def attempt(policy):
    program = compiled(policy)
    return run.need.with_temporaries(program.memory_analysis().temp_size_in_bytes), program

  if config.remat != remat.AUTO:
    policy = remat.chosen(config.remat, config.dtype, mesh.size)
    return Choice(policy, *attempt(policy), "")
  limits = filter(None, processes.gather_objects(mesh_lib.memory_limit(mesh)))
  limit = min(limits, default=None)
  if limit is not None:  # JAX's share of the memory, which the CUDA context is not part of.
    return choose(run, attempt, limit + memory.RESERVE_BYTES)
  policy = remat.chosen(remat.BALANCED, config.dtype, mesh.size)
  why = f'remat="auto" is {policy}: the device does not tell how much memory it has.'
  return Choice(policy, *attempt(policy), why)


def choose(run: savings.PlannedRun, attempt: Attempt, limit_bytes: float) -> Choice:
  """The first of ORDER that fits, or the last."""
  names = [remat.chosen(name, run.config.dtype, run.num_devices) for name in ORDER]
  *others, last = dict.fromkeys(names)
  too_large = []
  for policy in others:
    # While layers go backward, gradients and what all layers stored exist at the same time.
    stored = savings.activation_bytes(run, policy)
    need, compiled = run.need.with_temporaries(run.need.gradients + stored), None
    if need.total <= limit_bytes:
      need, compiled = attempt(policy)
    if need.total <= limit_bytes:
      break
    least = "" if compiled else "at least "
    too_large.append(f"{policy} needs {least}{need.total / 1e9:.1f} GB")
  else:
    policy, (need, compiled) = last, attempt(last)
  size = f"with {need.total / 1e9:.1f} GB of {limit_bytes / 1e9:.1f}"
  if need.total > limit_bytes:
    size += ", which is too much"
  why = f'remat="auto" is {policy}, {"; ".join([size, *too_large])}.'
  return Choice(policy, need, compiled, why)


def planned(
  config: Any, model: Any, abstract: Any, batch: Any, num_devices: int
) -> savings.PlannedRun:
  """The run with its need before anything is compiled: no temporaries but gradients."""
  leaves = of_model.stored_params(model, config)
  need = memory.need(config, model, abstract, batch, leaves.rules, None)
  return savings.PlannedRun(config, model, leaves, need, num_devices)
