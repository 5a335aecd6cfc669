"""How long will a step take? An estimate from model FLOPs at an assumed MFU, and link rates."""

from typing import NamedTuple

from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

SPREAD = 0.25  # The range is the MFU plus and minus this share.


class StepTime(NamedTuple):
  """Seconds; `low` hides all communication behind the products, `high` none of it."""

  compute: float  # At the assumed MFU.
  communication: float
  low: float
  high: float


def estimate(step: Step, gpu: Gpu, dtype: str, mfu: float) -> StepTime:
  """For a step whose products have this compute dtype."""
  compute = step.flops / step.num_devices / (gpu.flops(dtype) * mfu)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  low = max(compute / (1 + SPREAD), communication)
  return StepTime(compute, communication, low, compute / (1 - SPREAD) + communication)


def modelled(step: Step, gpu: Gpu, dtype: str, mfu: float) -> float:
  """Seconds, for ranking settings of a run: executed products, state traffic, communication."""
  # The MFU refers to `balanced`, whose products are 1.2 to 1.3 times the model FLOPs.
  products = step.executed_flops / 1.25 / (gpu.flops(dtype) * mfu)
  moved = 2 * (step.need.trained + step.need.lora + step.need.optimizer + step.need.gradients)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  return products + moved / gpu.bandwidth + communication
