"""When is a step saved, and which saved steps stay?

A step is planned if the plan asks for it. A stop saves a step that is not: it stays until the next
planned one is complete, so that in the end the same steps stay as without the stop.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Plan(NamedTuple):
  """When to save, and which steps stay; 0 or "" turns a rule off."""

  total_steps: int
  every_steps: int = 0  # ckpt_steps; the last step is always saved.
  keep_every_steps: int = 0  # keep_ckpt_steps: multiples of it are never deleted.
  keep_last: int = 2
  keep_best: str = ""  # A metric such as "eval/acc"; "-eval/avg" where less is better.


class Retention:
  """Applies a plan to the steps of a run, whose scores and reasons it collects."""

  def __init__(self, plan: Plan):
    """No step is known yet."""
    self._plan = plan
    self._values: dict[int, float] = {}  # keep_best's metric of saved steps.
    self._unplanned: set[int] = set()

  def add(self, step: int, scores: Mapping[str, float], *, planned: bool) -> None:
    """A saved step, and the scores of an evaluation of exactly this step."""
    if (value := self._value(scores)) is not None and step:  # The start is no candidate.
      self._values[step] = value
    (self._unplanned.discard if planned else self._unplanned.add)(step)

  def due(self, step: int, scores: Mapping[str, float]) -> bool:
    """Whether the plan asks for `step`; the same on all processes, as `scores` are."""
    plan, value = self._plan, self._value(scores)
    before = [v for s, v in self._values.items() if s != step]
    return step > 0 and (
      step == plan.total_steps
      or bool(plan.every_steps and step % plan.every_steps == 0)
      or bool(plan.keep_every_steps and step % plan.keep_every_steps == 0)
      or (value is not None and value > max(before, default=-math.inf))
    )

  def preserved(self, steps: Iterable[int]) -> set[int]:
    """Which of these saved steps stay."""
    plan, steps = self._plan, sorted(steps)
    planned = [step for step in steps if step not in self._unplanned]
    after = [step for step in steps if step > max(planned, default=-1)]  # Of stops.
    newest, earlier = after[-1:], after[:-1]
    room = plan.keep_last - len(newest)
    last = [*newest, *(planned[-room:] if room else [])]
    if len(last) < plan.keep_last:
      last += earlier[-(plan.keep_last - len(last)) :]
    multiples = [s for s in steps if s and plan.keep_every_steps and s % plan.keep_every_steps == 0]
    scored = [step for step in steps if step in self._values]
    best = sorted(scored, key=lambda step: (-self._values[step], step))[:1]
    return {*last, *multiples, *best}

  def _value(self, scores: Mapping[str, float]) -> float | None:
    """The metric of keep_best, larger is better; None if it was not measured."""
    name = self._plan.keep_best
    value = scores.get(name.removeprefix("-"))
    if value is None or not math.isfinite(value):
      return None
    return -float(value) if name.startswith("-") else float(value)
