"""What does a compiled step send between devices, and how many FLOPs does it execute?

Parses the text of an optimized HLO program (`compiled.as_text()`): each collective with its count
(iterations of the loops around it), bytes and mesh axes, and the FLOPs of each product.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from pgjax.formats.typed_json import Count
from pgjax.planning import hlo_text

_BITS = {"pred": 8, "bf16": 16}  # The other names contain the width: f32, s8, f8e4m3fn.
OPS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
  *("collective-permute", "collective-broadcast"),
)
_OP = re.compile(rf"(?<![%\w-])({'|'.join(OPS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


class Collective(msgspec.Struct, frozen=True):
  """One kind of collective on one set of axes, summed over a step."""

  op: str
  axes: str  # "data", or "replica+data" for groups along both.
  count: Count
  bytes: Count  # Of the whole arrays: results of a gather, operands of a reduction.
  sent_bytes: Count  # What one device sends on a ring: (n-1)/n of `bytes`; a reduction twice that.


def collectives(text: str, mesh: Mapping[str, int], unknown_trips: int = 1) -> list[Collective]:
  """All of a program, by op and axes; mesh is {axis: size}, devices in row-major order.

  unknown_trips: the iterations of loops whose length the compiler does not know.
  """
  totals: dict[tuple[str, str], list[int]] = {}
  for i, _, times in hlo_text.executed(text, unknown_trips):
    if i.op.removesuffix("-start") not in OPS:
      continue
    sent = read_collective(f"%{i.name} = {i.type} {i.op}(){i.attributes}", mesh)
    total = totals.setdefault((sent.op, sent.axes), [0, 0, 0])
    total[0] += times
    total[1] += times * sent.bytes
    total[2] += times * sent.sent_bytes
  return [Collective(*key, *total) for key, total in sorted(totals.items())]


def score_arrays(text: str, queries: int, keys: int, groups: int = 1) -> list[str]:
  """Arrays with a number for each pair of query and key, such as "f32[2,8,4608,4608]".

  groups: query heads per key/value head, which may share an axis with the queries.
  """
  pairs = {(queries, keys), (keys, queries), (groups * queries, keys)}

  def scores(dims):
    return any(pair in pairs for pair in itertools.pairwise(dims))

  shapes = {m[0]: tuple(int(d) for d in m[2].split(",") if d) for m in _SHAPE.finditer(text)}
  return sorted(shape for shape, dims in shapes.items() if scores(dims))


class Sent(NamedTuple):
  """One execution of one collective."""

  op: str
  axes: str
  group: list[int]  # The devices of the first group.
  bytes: int  # As in Collective.
  sent_bytes: int


def read_collective(line: str, mesh: Mapping[str, int]) -> Sent:
  """Of a line of a program that contains a collective or its start."""
  match = _OP.search(line)
  op, group = match[1], _group(line, mesh)
  result = line[: match.start()].partition(" = ")[2]
  whole = _whole_bytes(op, result, len(group), is_start=bool(match[2]))
  share = 1 if op.startswith("collective") else (len(group) - 1) / len(group)
  sent = round(whole * share * (2 if op == "all-reduce" else 1))
  return Sent(op, _axes(group, mesh), group, whole, sent)


def product_flops(text: str, unknown_trips: int = 1) -> float:
  """FLOPs of all matrix products that one device runs in a step, those inside kernels included."""
  executed = hlo_text.executed(text, unknown_trips)
  return sum(times * hlo_text.product_flops(i, types) for i, types, times in executed)


def _bytes(type_text: str) -> int:
  """Of all arrays in a type; the context scalars of async ops count 4 bytes."""
  total = 0
  for dtype, dims in _SHAPE.findall(type_text):
    total += math.prod(_ints(dims)) * (_BITS.get(dtype) or _ints(dtype)[0])
  return total // 8


def _whole_bytes(op: str, result: str, group_size: int, *, is_start: bool) -> int:
  """The larger of operands and results; the type of a start contains both."""
  if is_start and result.startswith("((") and op != "all-reduce":  # ((operands), results).
    operands, _, results = re.sub(r"\{[^{}]*\}", "", result).partition(")")
    return max(_bytes(operands), _bytes(results))
  if is_start and result.startswith("(") and op != "all-reduce":  # (operand, result, ...).
    return max(_bytes(shape[0]) for shape in _SHAPE.finditer(result))
  return _bytes(result) * (group_size if op == "reduce-scatter" else 1)


def _group(line: str, mesh: Mapping[str, int]) -> list[int]:
  """The devices of the first group; HLO has four notations for groups."""
  everyone = list(range(math.prod(mesh.values())))
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
    return [int(pairs[1]), int(pairs[2])]
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return [int(i) for i in listed[1].split(",")]
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
    return list(_iota(iota[2]).reshape(_ints(iota[1]))[0])
  if named := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line
  ):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    chosen = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
    devices = _iota(named[2]) if named[2] else np.arange(len(everyone))
    devices = devices.reshape([int(size) for size in sizes.values()])
    index = tuple(slice(None) if axis in chosen else 0 for axis in range(devices.ndim))
    return [int(i) for i in devices[index].ravel()]
  return everyone


def _iota(text: str) -> np.ndarray:
  """`[2,4]T(1,0)`: 0 to 7 as a 2 x 4 array, transposed."""
  dims, _, order = text.partition("T")
  shape = _ints(dims)
  numbers = np.arange(math.prod(shape)).reshape(shape)
  return numbers.transpose(_ints(order)) if order else numbers


def _ints(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _axes(group: list[int], mesh: Mapping[str, int]) -> str:
  """The axes along which the devices of a group differ."""
  coordinates = np.unravel_index(group, tuple(mesh.values()))
  along = [name for name, row in zip(mesh, coordinates, strict=True) if len({*row.tolist()}) > 1]
  return "+".join(along) or "one device"
