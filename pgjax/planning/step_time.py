"""How long may a step take on a GPU that nobody has timed it on?

Arithmetic, not measurement: model FLOPs at a stated share of the data sheet's peak (the MFU), and
the bytes of the collectives at the data sheet's rate of the links within a host.
"""

from typing import NamedTuple

from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

SPREAD = 0.25  # The range is from this much above the stated MFU to this much below it.


class StepTime(NamedTuple):
  """Seconds; `low` hides all communication behind the products, `high` none of it."""

  compute: float  # At the stated MFU.
  communication: float
  low: float
  high: float


def estimate(step: Step, gpu: Gpu, dtype: str, mfu: float) -> StepTime:
  """For a step whose products have that compute dtype."""
  devices = num_devices(step)
  compute = step.flops / devices / (gpu.flops(dtype) * mfu)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  low = max(compute / (1 + SPREAD), communication)
  return StepTime(compute, communication, low, compute / (1 - SPREAD) + communication)


def modelled(step: Step, gpu: Gpu, dtype: str, mfu: float) -> float:
  """Seconds that tell two settings of a run apart, for an order among them.

  Products computed twice take their time too; parameters and optimizer state are read and written
  once a step, gradients twice as often where microbatches add them up.
  """
  # With `balanced`, products take 1.2 to 1.3 times the model FLOPs: what the MFU stands for.
  products = step.executed_flops / 1.25 / (gpu.flops(dtype) * mfu)
  moved = 2 * (step.need.trained + step.need.lora + step.need.optimizer + step.need.gradients)
  communication = sum(c.sent_bytes for c in step.collectives) / gpu.link_bandwidth
  return products + moved / gpu.bandwidth + communication


def num_devices(step: Step) -> int:
  """Of the mesh that it was compiled for."""
  devices = 1
  for size in step.mesh.values():
    devices *= size
  return devices
