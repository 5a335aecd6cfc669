"""How long will a step take? From the compiled schedule, or from model FLOPs at an assumed MFU."""

from typing import NamedTuple

from pgjax.planning import interconnects, timeline
from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

SPREAD = 0.25  # At an assumed MFU the range is it plus and minus this share.
SCHEDULE_SPREAD = 0.15  # The model of a schedule against steps measured on an H100: docs/plan.md.
MFU = 0.4


class StepTime(NamedTuple):
  """Seconds; by MFU `low` hides all communication behind the products, `high` none of it."""

  compute: float
  communication: float
  low: float
  high: float


def played(step: Step, links: interconnects.Links) -> timeline.Played | None:
  """The schedule of a step that was compiled for a GPU, kernel by kernel."""
  return timeline.play(step.schedule, links.seconds) if step.schedule else None


def of_schedule(run: timeline.Played) -> StepTime:
  """The same as a range."""
  communication = sum(traffic.seconds for traffic in run.traffic.values())
  low, high = run.seconds / (1 + SCHEDULE_SPREAD), run.seconds * (1 + SCHEDULE_SPREAD)
  return StepTime(run.kernels, communication, low, high)


def estimate(step: Step, gpu: Gpu, dtype: str, mfu: float) -> StepTime:
  """For a step whose products have this compute dtype."""
  compute = step.flops / step.num_devices / (gpu.flops(dtype) * mfu)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  low = max(compute / (1 + SPREAD), communication)
  return StepTime(compute, communication, low, compute / (1 - SPREAD) + communication)


def modelled(
  step: Step, gpu: Gpu, dtype: str, mfu: float | None, links: interconnects.Links | None = None
) -> float:
  """Seconds, for ranking settings of a run: of the schedule, or at an assumed MFU."""
  if links and mfu is None and (run := played(step, links)):
    return run.seconds
  mfu = mfu or MFU
  # The MFU refers to `balanced`, whose products are 1.2 to 1.3 times the model FLOPs.
  products = step.executed_flops / 1.25 / (gpu.flops(dtype) * mfu)
  moved = 2 * (step.need.trained + step.need.lora + step.need.optimizer + step.need.gradients)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  return products + moved / gpu.bandwidth + communication
