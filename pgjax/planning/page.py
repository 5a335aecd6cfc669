"""How does a plan read? Text, and data for a program; pictures are in planning/figure.py.

Pure functions of what is known about a step. Gigabytes are 1e9 bytes, as GPUs are sold.
"""

from collections.abc import Sequence
from typing import Any

from pgjax.data import device_feed
from pgjax.planning import hlo, memory, step_time
from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

GB = 1e9
WORTH_A_LINE = 1000  # Bytes: the number of the step has none.
FOR_CPU = (
  "The step was compiled for the CPU, with simulated devices: what it makes on the way is another "
  "on a GPU. To compile for the GPU install what requirements-plan.txt says."
)
# What is stacked in the picture and stands in the table, in this order.
ROWS = (
  ("trained parameters", "trained"),
  ("frozen parameters", "frozen"),
  ("LoRA factors", "lora"),
  ("optimizer state", "optimizer"),
  ("averages and the rest", "other"),
  ("batch", "batch"),
  ("gradients", "gradients"),
  ("activations and workspace", "workspace"),
  ("batches that wait", "waiting"),
  ("reserve", "reserve"),
)


def memory_table(need: memory.Need, limit_bytes: float | None) -> str:
  """A row for each kind of bytes, their sums, and whether it fits."""
  notes = {
    "gradients": "from shapes",
    "workspace": f"with logits of {need.logits / GB:.2f} while the loss runs",
    "waiting": f"{device_feed.PREFETCH_DEPTH}, put there ahead of their step",
    "reserve": f"CUDA context {memory.RESERVE_BYTES / GB:.1f}, fragmentation "
    f"{memory.RESERVE_SHARE:.0%}",
  }
  lines = [f"{'on each device':<28}{'GB':>8}"]
  for label, field in ROWS:
    if (size := getattr(need, field)) >= WORTH_A_LINE:
      lines.append(_row(label, size, notes.get(field, "")))
    if field == "batch":
      lines.append(_row("= what a step is given", need.arguments, "exact"))
    if field == "workspace":
      lines.append(_row("= with what it makes", need.step, "as the compiler counts"))
  lines.append(_row("= in all", need.total, ""))
  if limit_bytes:
    lines[-1] += f"of {limit_bytes / GB:.1f}: {verdict(need, limit_bytes)}"
  return "\n".join(line.rstrip() for line in lines)


def _row(label: str, size: int, note: str) -> str:
  digits = 2 if size >= 0.01 * GB else 4
  return f"  {label:<26}{size / GB:>8.{digits}f}  {note}"


def verdict(need: memory.Need, limit_bytes: float) -> str:
  """One sentence."""
  if need.total > limit_bytes:
    return f"does not fit, {(need.total - limit_bytes) / GB:.1f} GB too much."
  if need.step + need.waiting > memory.PREALLOCATED * limit_bytes:
    return (
      "fits, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment (JAX takes "
      f"{memory.PREALLOCATED:.0%} unless told otherwise)."
    )
  return "fits."


def page(config: Any, spec: str, step: Step, name: str, gpu: Gpu, limit_bytes: float,
         mfu: float) -> str:  # fmt: skip
  """All that `pgjax.plan` says about one run."""
  devices = step_time.num_devices(step)
  head = f"{spec} on {devices} x {name}, {limit_bytes / GB:.1f} GB each"
  size = (
    f"{config.res} px, {config.text_len} tokens, batch of {config.input.batch_size}, "
    f"{config.microbatches} microbatch(es), {config.dtype}, remat {config.remat}"
  )
  parts = [head, size, compiled_for(step), "", memory_table(step.need, limit_bytes), ""]
  return "\n".join([*parts, *work(config, step, gpu, mfu), *unusual(config, name, gpu)])


def compiled_for(step: Step) -> str:
  """For which device XLA compiled the step."""
  if step.compiled_for == "cpu":
    return FOR_CPU
  return f"the step was compiled for {step.compiled_for}, without one, in {step.seconds:.0f} s"


def unusual(config: Any, name: str, gpu: Gpu) -> list[str]:
  """What a reader might not expect of this GPU."""
  if config.dtype == "bfloat16" and not gpu.has_bfloat16:
    return [
      f"{name} has no bfloat16 arithmetic: XLA keeps bfloat16 arrays and computes their products "
      "in float32, at the float32 peak; float32 copies of weights are part of the workspace."
    ]
  return []


def work(config: Any, step: Step, gpu: Gpu, mfu: float) -> list[str]:
  """FLOPs, communication and time."""
  batch_size = config.input.batch_size
  lines = [
    f"{step.flops / 1e12:.1f} TFLOP a step, {step.flops / batch_size / 1e12:.2f} an example; "
    f"products computed, on a device: {step.executed_flops / 1e12:.1f} TFLOP"
  ]
  lines += communication(step.collectives)
  time = step_time.estimate(step, gpu, config.dtype, mfu)
  high, low = mfu * (1 + step_time.SPREAD), mfu * (1 - step_time.SPREAD)
  text = (
    f"{time.low:.3g} to {time.high:.3g} s a step, {batch_size / time.high:.3g} to "
    f"{batch_size / time.low:.3g} examples/s: {high:.0%} to {low:.0%} of "
    f"{gpu.flops(config.dtype) / 1e12:.0f} TFLOP/s"
  )
  if step.collectives:
    text += (
      f"; communication {time.communication:.3g} s at {gpu.link_bandwidth / GB:.0f} GB/s, hidden "
      "or not"
    )
  return [*lines, text + ". A model, not a measurement."]


def communication(collectives: Sequence[hlo.Collective]) -> list[str]:
  """A row for each axis and op."""
  if not collectives:
    return []
  lines = [f"{'axis':<14}{'collective':<16}{'times':>7}{'GB':>8}{'GB sent by a device':>21}"]
  for c in sorted(collectives, key=lambda c: (c.axes, c.op)):
    sizes = f"{c.bytes / GB:>8.3f}{c.sent_bytes / GB:>21.3f}"
    lines.append(f"{c.axes:<14}{c.op:<16}{c.count:>7}{sizes}")
  return lines


def as_json(config: Any, spec: str, step: Step, name: str, gpu: Gpu, limit_bytes: float,
            mfu: float) -> dict[str, Any]:  # fmt: skip
  """The same as data; bytes of one device, seconds."""
  need = step.need
  return dict(
    config=spec,
    device=name,
    devices=step_time.num_devices(step),
    compiled_for=step.compiled_for,
    mesh=step.mesh,
    limit_bytes=limit_bytes,
    memory={field: getattr(need, field) for _, field in ROWS},
    arguments_bytes=need.arguments,
    temporaries_bytes=need.temporaries,
    logits_bytes=need.logits,
    step_bytes=need.step,
    total_bytes=need.total,
    fits=need.total <= limit_bytes,
    flops=step.flops,
    executed_flops_per_device=step.executed_flops,
    collectives=[c._asdict() for c in step.collectives],
    mfu=mfu,
    seconds=step_time.estimate(step, gpu, config.dtype, mfu)._asdict(),
    compile_seconds=step.seconds,
  )
