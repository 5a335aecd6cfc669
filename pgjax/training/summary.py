"""What will this run do? The text above the progress bar; params/table.py has the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgjax.layers import remat

WIDTH = 100


def summary(config: Any, *, devices: Any, mesh_shape: Mapping[str, int], total_steps: int,
            num_examples: int, num_processes: int, attention: str = "") -> str:  # fmt: skip
  """One line each for devices, mesh, model, data, length and so on."""
  batch_size = config.input.batch_size
  mesh = ", ".join(f"{name}={size}" for name, size in mesh_shape.items())
  epochs = total_steps * batch_size / num_examples
  policy = config.remat
  if policy != remat.AUTO:  # Which is chosen when the step is compiled.
    policy = remat.chosen(policy, config.dtype, len(devices))
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
    *([("attention", attention)] if attention else []),
  ]
  return "\n".join(f"{name:<12} {value}" for name, value in lines)


def _tower(section: Any) -> str:
  """A tower's variant, and the other fields that the config sets."""
  fields = {name: value for name, value in section.items() if value is not None}
  variant = [fields.pop("variant")] if "variant" in fields else []
  return " ".join(variant + [f"{name}={value}" for name, value in fields.items()])


def example(batch: Mapping[str, np.ndarray], tokenizer: Any, row: int = 0) -> str:
  """One row of a training batch: prompt, answer, and each token above its id and masks.

  batch: text, mask_ar, mask_loss int [B, T+1]. Padding at the end is only counted.
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
    for i, name in enumerate(("token", "id", "mask_ar", "mask_loss")):
      cells = [column[i].rjust(max(map(len, column))) for column in block]
      lines.append(f"  {name:<9} " + " ".join(cells))
    lines.append("")
  lines[-1] = f"  then {len(tokens) - used} x padding (mask_ar 1, mask_loss 0)"
  return "\n".join(lines)


def _blocks(columns: list[list[str]]) -> list[list[list[str]]]:
  """Cuts the columns so that no line is wider than WIDTH."""
  blocks, free = [[]], WIDTH - 12
  for column in columns:
    width = max(map(len, column)) + 1
    if width > free and blocks[-1]:
      blocks.append([])
      free = WIDTH - 12
    blocks[-1].append(column)
    free -= width
  return blocks


def _image(pixels: np.ndarray) -> str:
  shape = " x ".join(map(str, pixels.shape))
  return f"{shape}, values from {pixels.min():.2f} to {pixels.max():.2f}"


def scanned(where: str, scans: Sequence[Any]) -> str:
  """How many texts of each data set are truncated, and what is odd about them; a line each."""
  lines = []
  for scan in scans:
    longest = f"; the longest needs text_len={scan.longest}" if scan.truncated else ""
    cut = f"{scan.truncated} of {scan.seen:,} texts of {scan.name} are cut{longest}"
    lines += [f"{where}: {line}" for line in (cut, *scan.notes)]
  return "\n".join(lines)
