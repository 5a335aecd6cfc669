"""What does a compiled step send between devices, and how many FLOPs does it execute?

Parses the text of an optimized HLO program (`compiled.as_text()`): each collective with its count
(iterations of the loops around it), bytes and mesh axes, and the FLOPs of each product.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from pgjax.formats.typed_json import Count

_BITS = {"pred": 8, "bf16": 16}  # The other names contain the width: f32, s8, f8e4m3fn.
OPS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
  *("collective-permute", "collective-broadcast"),
)
_OP = re.compile(rf"(?<![%\w-])({'|'.join(OPS)})(-start)?\(")
_PRODUCT = re.compile(r"(?<![%\w-])(?:dot|custom-call)\(%?([\w.\-]+),.*lhs_contracting_dim\w+")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)')
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
  r"(?:calls|body|to_apply|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)


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
  computations, entry = _computations(text)
  totals: dict[tuple[str, str], list[int]] = {}
  for _, line, times in _executed(computations, entry, 1, unknown_trips, _OP):
    sent = read_collective(line, mesh)
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
  """FLOPs of all matrix products that one device runs in a step."""
  computations, entry = _computations(text)
  types = {
    name: dict(line.split("%", 1)[1].split(" = ", 1) for line in lines if "%" in line)
    for name, lines in computations.items()
  }
  total = 0.0
  for name, line, times in _executed(computations, entry, 1, unknown_trips, _PRODUCT):
    left = _dims(types[name][_PRODUCT.search(line)[1]])
    shared = math.prod(left[i] for i in _ints(_CONTRACTED.search(line)[1]))
    total += 2.0 * math.prod(_dims(line.partition(" = ")[2])) * shared * times
  return total


def _dims(type_text: str) -> list[int]:
  """The shape of the first array in a type."""
  return _ints(_SHAPE.search(type_text)[2])


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation without their metadata, and the name of the entry."""
  computations: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if head := _HEAD.match(line):
      name = head[2]
      computations[name] = []
      entry = name if head[1] else entry
    elif name and " = " in line:
      computations[name].append(re.sub(r"metadata=\{[^}]*\}", "", line))
  return computations, entry


def _executed(computations, name, times, unknown_trips, wanted) -> Iterator[tuple[str, str, int]]:
  """(computation, line, executions) of each wanted line, where `name` is executed `times` times."""
  for line in computations.get(name, ()):
    if wanted.search(line):
      yield name, line, times
      continue
    inner = times
    if " while(" in line:
      trips = _TRIPS.search(line)
      inner *= int(trips[1]) if trips else unknown_trips
    for called in _CALLED.findall(line):
      for callee in re.findall(r"[\w.\-]+", called):
        yield from _executed(computations, callee, inner, unknown_trips, wanted)


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
