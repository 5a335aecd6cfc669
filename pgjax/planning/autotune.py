"""Which setting of a run is the fastest that fits?

Compiles a few candidates. First those that change nothing about the run: what the layers store for
the backward pass, the number of microbatches, whether parameters are sharded. Only if none of them
fits, those that change the run: storage of moments, frozen parts, adapters.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pgjax.config import load as config_load, validate as config_validate
from pgjax.layers import remat
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.planning import interconnects, savings, step_time
from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

POLICIES = (
  *("products_saveable", "attention_saveable", remat.BALANCED, "least_memory"),
  *("mlp_gate_saveable", "outputs_saveable"),
)
REPLICATED = '[[".*", "replicate()"]]'


class Candidate(NamedTuple):
  """One compiled setting of the run."""

  overrides: dict[str, str]  # What it changes.
  step: Step
  seconds: float  # Modelled.
  fits: bool


def candidates(
  config: Any,
  compile_step: Callable[[Any], Step],
  *,
  gpu: Gpu,
  limit_bytes: float,
  mfu: float | None,
  num_devices: int,
  links: interconnects.Links | None = None,
) -> Iterator[Candidate]:
  """Yields candidates as they are compiled; ends when the next ones would be slower."""

  def attempt(overrides):
    changed = config_validate.validated(config_load.overridden(config, overrides))
    step = compile_step(changed)
    seconds = step_time.modelled(step, gpu, changed.dtype, mfu, links)
    return Candidate(overrides, step, seconds, step.need.total <= limit_bytes)

  same_run = []
  for overrides in _same_run(config, num_devices):
    yield (candidate := attempt(overrides))
    same_run.append(candidate)
    if _hopeless(candidate, limit_bytes):
      break
  if any(candidate.fits for candidate in same_run):
    return
  if not _hopeless(candidate, limit_bytes):
    least = min(c.step.need.total for c in same_run)
    for overrides in _microbatched(config, num_devices):
      yield (candidate := attempt(overrides))
      if candidate.fits:
        return
      if candidate.step.need.total > least:  # A second set of gradients costs more than it saves.
        break
  yield from _other_runs(config, same_run[0], attempt, num_devices, limit_bytes)


def _same_run(config: Any, num_devices: int) -> Iterator[dict[str, str]]:
  """Overrides with the whole batch at once."""
  yield {}
  for policy in POLICIES:
    if policy != remat.chosen(config.remat, config.dtype, num_devices) and policy != config.remat:
      yield {"remat": policy}
  if num_devices > 1:
    yield {"sharding_strategy": REPLICATED}


def _hopeless(candidate: Candidate, limit_bytes: float) -> bool:
  """Whether it would not fit even if nothing were stored for the backward pass."""
  return candidate.step.need.total - candidate.step.need.workspace > limit_bytes


def _microbatched(config: Any, num_devices: int) -> Iterator[dict[str, str]]:
  rows = config.input.batch_size // num_devices
  for parts in (2, 4, 8, 16, 32, 64):
    if parts > config.microbatches and rows % parts == 0:
      yield {"microbatches": str(parts), "remat": "least_memory"}


def _other_runs(config, first, attempt, num_devices, limit_bytes) -> Iterator[Candidate]:
  """Adds switches until their estimates are large enough, then tries adapters."""
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  run = savings.PlannedRun(config, model, leaves, first.step.need, num_devices)
  overrides, missing = {}, first.step.need.total - limit_bytes
  for switch in savings.of_other_runs(run):
    overrides = overrides | switch.overrides
    missing -= switch.saves
    if missing < 0.05 * limit_bytes:
      yield (candidate := attempt(overrides))
      if candidate.fits:
        return
  least, parts = {"remat": "least_memory"}, config.input.batch_size // num_devices
  for base in ("bfloat16", "nf4"):
    for more in ({}, least, least | {"microbatches": str(parts)}):
      yield (candidate := attempt(savings.adapters(config, base) | more))
      if candidate.fits and not more:  # Without recomputation it may fit too.
        yield attempt(candidate.overrides | {"remat": POLICIES[0]})
      if candidate.fits:
        return
      if _hopeless(candidate, limit_bytes):
        break


def best(candidates: list[Candidate]) -> Candidate | None:
  """The fastest that fits; of equally fast ones the first."""
  return min((c for c in candidates if c.fits), key=lambda c: c.seconds, default=None)


def line(candidate: Candidate) -> str:
  """One row of text."""
  change = savings.flags(candidate.overrides) or "unchanged"
  fits = "fits" if candidate.fits else "too much"
  gigabytes = candidate.step.need.total / 1e9
  return f"{gigabytes:>8.1f} GB  {fits:<9}{candidate.seconds:>8.3f} s   {change}"


def verdict(candidates: list[Candidate]) -> str:
  """The recommendation, with the flags to add."""
  chosen = best(candidates)
  if chosen is None:
    return "None of these fits: use more devices, a larger one, or a smaller model."
  if not chosen.overrides:
    return "The unchanged config is the fastest that fits."
  gain = candidates[0].seconds / chosen.seconds
  than = f", {gain:.2f} x the unchanged config" if candidates[0].fits else ""
  flags = savings.flags(chosen.overrides)
  return f"The fastest that fits: {chosen.seconds:.3f} s a step by the model{than}. Add\n  {flags}"


def as_json(candidate: Candidate) -> dict[str, Any]:
  """A candidate as data."""
  fields = dict(overrides=candidate.overrides, total_bytes=candidate.step.need.total)
  return fields | dict(fits=candidate.fits, seconds=candidate.seconds)
