"""Which mesh does a config ask for? A list of pairs (axis, size), or the name of a preset.

configs/common.py has the presets. "auto" and sizes of "host" wait until the devices are known
(planning/mesh_choice.py, distributed/mesh.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.config import schema
from pgjax.errors import UserError, did_you_mean

AXES = ("replica", "data", "tensor", "sequence")
AUTO, HOST = "auto", "host"
_SYNONYMS = {
  "data": ("fsdp", "dp", "batch", "ddp"),
  "replica": ("replicas", "dcn", "nodes", "hosts", "pod"),
  "tensor": ("model", "mp", "tp", "heads", "mlp", "vocab"),
  "sequence": ("sp", "seq", "cp", "context", "tokens"),
}


def check(spec: Any) -> None:
  """Raises for an axis without a meaning, named twice, or a second size of -1."""
  axes, sizes = [axis for axis, _ in spec], [size for _, size in spec]
  for axis in axes:
    if axis not in AXES:
      meant = next((name for name, others in _SYNONYMS.items() if axis in others), None)
      hint = f" Did you mean {meant!r}?" if meant else did_you_mean(axis, AXES)
      raise UserError(f"config.mesh: there is no axis {axis!r}.{hint}")
  if not spec or len(set(axes)) < len(axes) or sizes.count(-1) > 1:
    raise UserError(
      f"config.mesh={schema.shown(spec)} must name each axis once, with at most one size of -1."
    )
  if wrong := [size for size in sizes if size != HOST and size < 1 and size != -1]:
    raise UserError(
      f"config.mesh={schema.shown(spec)}: {wrong[0]} must be positive, or -1 for the rest."
    )


def sizes(
  spec: Sequence[tuple[str, int | str]], num_devices: int, devices_a_host: int
) -> dict[str, int]:
  """{axis: size}; -1 is the remaining devices, "host" those of a host."""
  check(spec)
  known = {axis: devices_a_host if size == HOST else size for axis, size in spec}
  fixed = math.prod(size for size in known.values() if size != -1)
  open_axis = next((axis for axis, size in known.items() if size == -1), None)
  if num_devices % fixed or (open_axis is None and fixed != num_devices):
    raise UserError(
      f"config.mesh={[tuple(pair) for pair in spec]} does not fit {num_devices} devices; "
      "the sizes must multiply to that number, and one of them may be -1."
    )
  return {axis: num_devices // fixed if size == -1 else size for axis, size in known.items()}


def named(name: str, presets: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
  """The fields of a preset, `mesh` and perhaps `sharding_strategy`."""
  if name not in presets:
    raise UserError(
      f"config.mesh={schema.shown(name)} is no list of pairs (axis, size) and no preset of"
      f" configs/common.py.{did_you_mean(name, [AUTO, *presets])}"
    )
  return presets[name]
