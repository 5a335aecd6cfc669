"""What will this run do? The text that stands above the progress bar, to be read before waiting.

Pure functions of what the program already knows; metric_log prints what they return. The table of
parameters is in params/rules.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgjax.layers import remat

WIDTH = 100


def summary(config: Any, *, devices: Any, mesh_shape: Mapping[str, int], total_steps: int,
            num_examples: int, num_processes: int) -> str:  # fmt: skip
  """Devices, mesh, model, data and length, a line each."""
  batch_size = config.input.batch_size
  mesh = ", ".join(f"{name}={size}" for name, size in mesh_shape.items())
  epochs = total_steps * batch_size / num_examples
  policy = remat.chosen(config.remat, config.dtype, len(devices))
  frames = f" x {config.num_frames} frames" if config.num_frames else ""
  lines = [
    ("devices", f"{len(devices)} x {devices[0].device_kind} in {num_processes} process(es)"),
    ("mesh", mesh),
    ("model", f"image {_tower(config.model.img)}; text {_tower(config.model.llm)}"),
    ("starts from", config.model_init or "random values"),
    ("input", f"{config.res} px{frames}, {config.text_len} tokens, batch of {batch_size}"),
    ("data", f"{num_examples:,} examples; {total_steps:,} steps are {epochs:.2f} epochs"),
    ("optimizer", f"{config.optax_name}, lr {config.lr:g}, wd {config.wd:g}"),
    ("computes in", f"{config.dtype}, {config.microbatches} microbatch(es), remat {policy}"),
  ]
  return "\n".join(f"{name:<12} {value}" for name, value in lines)


def _tower(section: Any) -> str:
  """A tower's variant and whatever the config sets beside it."""
  fields = {name: value for name, value in section.items() if value is not None}
  variant = [fields.pop("variant")] if "variant" in fields else []
  return " ".join(variant + [f"{name}={value}" for name, value in fields.items()])


def example(batch: Mapping[str, np.ndarray], tokenizer: Any, row: int = 0) -> str:
  """One row of a training batch: prompt, answer, and each token above its id and masks.

  batch: text, mask_ar, mask_loss int [B, T+1]. The padding at the end is counted, not shown.
  """
  tokens = batch["text"][row]
  ar, loss = batch["mask_ar"][row], batch["mask_loss"][row]
  used = int(np.max(np.flatnonzero(tokens != tokenizer.pad), initial=-1)) + 1
  learned = loss[:used].astype(bool)
  lines = [
    "First example",
    f"  image     {_image(batch['image'][row])}",
    f"  prompt    {tokenizer.decode(tokens[:used][~learned])!r}",
    f"  answer    {tokenizer.decode(tokens[:used][learned])!r}",
  ]
  columns = [
    [tokenizer.piece(int(t)).replace("\n", "\\n"), str(t), str(int(a)), str(int(w))]
    for t, a, w in zip(tokens[:used], ar, loss, strict=False)
  ]
  for block in _blocks(columns):
    for name, cells in zip(("token", "id", "mask_ar", "mask_loss"), zip(*block, strict=True),
                           strict=True):  # fmt: skip
      widths = [max(map(len, column)) for column in block]
      cells = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
      lines.append(f"  {name:<9} " + " ".join(cells))
    lines.append("")
  lines[-1] = f"  then {len(tokens) - used} x padding (mask_ar 1, mask_loss 0)"
  return "\n".join(lines)


def _blocks(columns: list[list[str]]) -> list[list[list[str]]]:
  """Cuts the columns so that no line is wider than WIDTH."""
  blocks, room = [[]], WIDTH - 12
  for column in columns:
    width = max(map(len, column)) + 1
    if width > room and blocks[-1]:
      blocks.append([])
      room = WIDTH - 12
    blocks[-1].append(column)
    room -= width
  return blocks


def _image(pixels: np.ndarray) -> str:
  shape = " x ".join(map(str, pixels.shape))
  return f"{shape}, values from {pixels.min():.2f} to {pixels.max():.2f}"


def scanned(where: str, scans: Sequence[Any]) -> str:
  """What the look at the texts found, a line for each data set."""
  lines = []
  for scan in scans:
    text = f"{where}: {scan.truncated} of {scan.seen:,} texts of {scan.name} are cut"
    if scan.truncated:
      text += f"; the longest needs text_len={scan.longest}"
    lines.append(text)
  return "\n".join(lines)
