"""How is a plan reported? As text and as data; planning/figure.py draws it.

Gigabytes are 1e9 bytes, as on data sheets.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pgjax.data import device_feed
from pgjax.planning import hlo, interconnects, memory, step_time, timeline
from pgjax.planning.compiler import Step
from pgjax.planning.gpus import Gpu

GB = 1e9
WORTH_A_LINE = 1000  # Bytes; the step number gets no line.
FOR_CPU = (
  "The step was compiled for the CPU, with simulated devices: its temporaries differ from those on "
  "a GPU. To compile for the GPU, install the packages in requirements-plan.txt."
)
# (label, field of Need) in the table and the picture.
ROWS = (
  ("trained parameters", "trained"),
  ("frozen parameters", "frozen"),
  ("LoRA factors", "lora"),
  ("optimizer state", "optimizer"),
  ("EMA weights and step", "other"),
  ("batch", "batch"),
  ("gradients", "gradients"),
  ("activations and workspace", "workspace"),
  ("prefetched batches", "waiting"),
  ("reserve", "reserve"),
)


def memory_table(need: memory.Need, limit_bytes: float | None) -> str:
  """A row for each kind of bytes, their sums, and whether the run fits."""
  notes = {
    "gradients": "from shapes",
    "workspace": f"with logits of {need.logits / GB:.2f} while the loss runs",
    "waiting": f"{device_feed.PREFETCH_DEPTH} batches",
    "reserve": "CUDA context "
    f"{memory.RESERVE_BYTES / GB:.1f}, fragmentation {memory.RESERVE_SHARE:.0%}",
  }
  lines = [f"{'on each device':<28}{'GB':>8}"]
  for label, field in ROWS:
    if (size := getattr(need, field)) >= WORTH_A_LINE:
      lines.append(_row(label, size, notes.get(field, "")))
    if field == "batch":
      lines.append(_row("= inputs", need.arguments, "exact"))
    if field == "workspace":
      lines.append(_row("= peak with temporaries", need.step, "from the compiler"))
  lines.append(_row("= total", need.total, ""))
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
    default = f"{memory.PREALLOCATED:.0%}"
    return f"fits, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment (default {default})."
  return "fits."


def page(config: Any, spec: str, step: Step, name: str, gpu: Gpu, limit_bytes: float,
         mfu: float | None, links: interconnects.Links | None = None) -> str:  # fmt: skip
  """The report on one run."""
  how = f"the step was compiled for {step.compiled_for}, without one, in {step.seconds:.0f} s"
  lines = [
    f"{spec} on {step.num_devices} x {name}, {limit_bytes / GB:.1f} GB each",
    f"{config.res} px, {config.text_len} tokens, batch of {config.input.batch_size}, "
    f"{config.microbatches} microbatch(es), {config.dtype}, remat {step.remat}",
    *([f"attention: {step.attention}"] if step.attention else []),
    FOR_CPU if step.compiled_for == "cpu" else how,
    "",
    memory_table(step.need, limit_bytes),
    "",
    *work(config, step, gpu, mfu, links),
  ]
  if config.dtype == "bfloat16" and not gpu.has_bfloat16:
    lines.append(
      f"{name} has no bfloat16 arithmetic: XLA stores bfloat16 arrays and computes their products "
      "in float32, at the float32 peak; float32 copies of weights are part of the workspace."
    )
  return "\n".join(lines)


def work(config: Any, step: Step, gpu: Gpu, mfu: float | None,
         links: interconnects.Links | None = None) -> list[str]:  # fmt: skip
  """FLOPs, communication and time: of the schedule, or at an assumed MFU if one is given."""
  batch_size = config.input.batch_size
  lines = [
    f"{step.flops / 1e12:.1f} TFLOP a step, {step.flops / batch_size / 1e12:.2f} an example; "
    f"executed products, per device: {step.executed_flops / 1e12:.1f} TFLOP"
  ]
  if links and mfu is None and (run := step_time.played(step, links)):
    return [*lines, *_traffic(run, links), *_schedule(config, step, gpu, run)]
  mfu = mfu or step_time.MFU
  lines += communication(step.collectives)
  time = step_time.estimate(step, gpu, config.dtype, mfu)
  high, low = mfu * (1 + step_time.SPREAD), mfu * (1 - step_time.SPREAD)
  text = (
    f"{time.low:.3g} to {time.high:.3g} s a step, {batch_size / time.high:.3g} to "
    f"{batch_size / time.low:.3g} examples/s: {high:.0%} to {low:.0%} of "
    f"{gpu.flops(config.dtype) / 1e12:.0f} TFLOP/s"
  )
  if step.collectives:
    rate = f"{gpu.link_bandwidth / GB:.0f} GB/s"
    text += f"; communication {time.communication:.3g} s at {rate}, hidden or not"
  return [*lines, text + ". A model, not a measurement."]


def _schedule(config, step, gpu, run) -> list[str]:
  time, size = step_time.of_schedule(run), config.input.batch_size
  mfu = step.flops / step.num_devices / run.seconds / gpu.flops(config.dtype)
  waited = sum(traffic.waited for traffic in run.traffic.values())
  text = f"of it products {run.products:.3g} s, memory and launches "
  text += f"{run.kernels - run.products:.3g} s"
  text += f", waiting for links {waited:.3g} s" if run.traffic else ""
  return [
    f"{run.seconds:.3g} s a step ({time.low:.3g} to {time.high:.3g}), {size / run.seconds:.3g} "
    f"examples/s, {mfu:.0%} MFU; {text}. A model of the compiled schedule, not a measurement."
  ]


def _traffic(run: timeline.Played, links: interconnects.Links) -> list[str]:
  """A row for each axis, op and kind of link."""
  if not run.traffic:
    return []
  lines = [
    f"Links: {links.inside / GB:.0f} GB/s inside a host, {links.between * 8 / GB:.0f} Gb/s between "
    f"hosts for each device, {interconnects.REACHED:.0%} of them reached",
    f"{'axis':<14}{'collective':<20}{'link':<10}{'times':>7}{'GB sent':>9}{'ms':>8}"
    f"{'ms hidden':>11}",
  ]
  for link, t in sorted(run.traffic.items(), key=lambda pair: (pair[0].axes, pair[0].op)):
    where = "between" if link.between_hosts else "inside"
    hidden = max(0.0, t.seconds - t.waited)
    lines.append(
      f"{link.axes:<14}{link.op:<20}{where:<10}{t.count:>7}{t.sent_bytes / GB:>9.3f}"
      f"{1e3 * t.seconds:>8.1f}{1e3 * hidden:>11.1f}"
    )
  return lines


def communication(collectives: Sequence[hlo.Collective]) -> list[str]:
  """A row for each axis and op."""
  head = f"{'axis':<14}{'collective':<16}{'times':>7}{'GB':>8}{'GB sent by a device':>21}"
  lines = [head] if collectives else []
  for c in sorted(collectives, key=lambda c: (c.axes, c.op)):
    sizes = f"{c.bytes / GB:>8.3f}{c.sent_bytes / GB:>21.3f}"
    lines.append(f"{c.axes:<14}{c.op:<16}{c.count:>7}{sizes}")
  return lines


def as_json(config: Any, spec: str, step: Step, name: str, gpu: Gpu, limit_bytes: float,
            mfu: float | None,
            links: interconnects.Links | None = None) -> dict[str, Any]:  # fmt: skip
  """The same as data; bytes of one device, seconds."""
  need = step.need
  run = step_time.played(step, links) if links and mfu is None else None
  time = step_time.of_schedule(run) if run else None
  mfu = None if time else mfu or step_time.MFU
  return dict(
    config=spec,
    device=name,
    devices=step.num_devices,
    compiled_for=step.compiled_for,
    mesh=step.mesh,
    remat=step.remat,
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
    collectives=msgspec.to_builtins(step.collectives),
    mfu=mfu,
    seconds=(time or step_time.estimate(step, gpu, config.dtype, mfu))._asdict(),
    modelled_seconds=run.seconds if run else None,
    links=_links_as_json(run, links) if run else None,
    compile_seconds=step.seconds,
  )


def _links_as_json(run: timeline.Played, links: interconnects.Links) -> dict[str, Any]:
  rows = [dict(link._asdict(), **traffic._asdict()) for link, traffic in run.traffic.items()]
  return dict(links._asdict(), collectives=rows)
