"""Which instructions does a compiled program run, and what does each read, write and multiply?

Parses the text of an optimized HLO program (`compiled.as_text()`) for planning/timeline.py.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgjax.kernels import triton

_BITS = {"pred": 8, "bf16": 16, "token": 0}  # The other names contain the width: f32, s8, u4.
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)')
_ATTENTION = re.compile(
  r'_target="__gpu\$xla\.gpu\.triton".*op_name="[^"]*\b(attention_\w+)\W+pallas_call"'
)
_MANY_TILES = 1 << 20  # Of a kernel whose programs keep a GPU busy.
_SLICES = ("dynamic-slice", "slice", "gather")


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str
  op: str
  operands: list[str]
  attributes: str  # What follows the operands.


class Cost(NamedTuple):
  """What a kernel does."""

  bytes: float  # Read and written.
  flops: float  # Of matrix products.
  dtype: str  # Of their left operand; "" without products.
  tiles: int  # Of 128 x 128 numbers in the results of its products.


Program = Mapping[str, Sequence[Instruction]]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """The instructions of each computation in the order of the schedule; the name of the entry."""
  computations: dict[str, list[Instruction]] = {}
  entry = name = ""
  for line in text.splitlines():
    if head := _HEAD.match(line):
      name = head[2]
      computations[name] = []
      entry = name if head[1] else entry
    elif name and (match := _LINE.match(line)):
      computations[name].append(_instruction(match[1], match[2]))
  return computations, entry


def _instruction(name: str, text: str) -> Instruction:
  end = _closed(text, " ")
  head = re.match(r"\s*([\w\-]+)\(", text[end:])
  if not head:
    return Instruction(name, text[:end], "", [], "")
  rest = text[end + head.end() :]
  inside = _closed(rest, ")")
  operands = re.findall(r"%([\w.\-]+)", rest[:inside])
  return Instruction(name, text[:end], head[1], operands, rest[inside + 1 :])


def _closed(text: str, wanted: str) -> int:
  """The index of the first `wanted` outside of brackets."""
  depth = 0
  for match in re.finditer(r"[()\[\]{} ]", text):
    if match[0] == wanted and depth == 0:
      return match.start()
    depth += (match[0] in "([{") - (match[0] in ")]}")
  return len(text)


def called(instruction: Instruction, key: str = r"calls|to_apply|body") -> list[str]:
  """The computations that it names under these keys."""
  found = re.findall(rf"\b(?:{key})=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.attributes)
  return [name for names in found for name in re.findall(r"[\w.\-]+", names)]


def size(type_text: str) -> float:
  """Bytes of all arrays in a type."""
  total = 0.0
  for dtype, dims in _SHAPE.findall(type_text):
    bits = _BITS.get(dtype)
    bits = int((re.findall(r"\d+", dtype) or ["0"])[0]) if bits is None else bits
    total += math.prod(_ints(dims)) * bits / 8
  return total


def cost(instruction: Instruction, types: Mapping[str, str], program: Program) -> Cost:
  """Of an instruction that is one kernel; types: those of the names of its computation."""
  if instruction.op == "fusion":
    return _fusion(instruction, program[called(instruction)[0]])
  if instruction.op == "dynamic-slice":
    return Cost(2 * size(instruction.type), 0.0, "", 0)
  if instruction.op == "dynamic-update-slice":
    return Cost(2 * size(types.get(instruction.operands[1], "")), 0.0, "", 0)
  read = sum(size(types.get(name, "")) for name in instruction.operands)
  if instruction.op == "dot" or "gemm_backend_config" in instruction.attributes:
    written = _SHAPE.search(instruction.type)  # Not the workspace after it.
    return Cost(read + size(written[0] if written else ""), *_product(instruction, types))
  flops = attention_flops(instruction, types)
  kernel = (float(flops), "bf16", _MANY_TILES) if flops else (0.0, "", 0)
  return Cost(read + size(instruction.type), *kernel)


def attention_flops(instruction: Instruction, types: Mapping[str, str]) -> int:
  """FLOPs of the products inside one of the kernels of kernels/triton_attention.py; else 0."""
  kernel = _ATTENTION.search(instruction.attributes)
  if kernel is None:
    return 0
  found = (_SHAPE.search(types[name]) for name in instruction.operands[:2])
  return triton.flops(kernel[1], *(_ints(shape[2]) for shape in found if shape))


def _product(instruction: Instruction, types: Mapping[str, str]) -> tuple[float, str, int]:
  """FLOPs, dtype and tiles of the result of a matrix product."""
  left = _SHAPE.search(types.get(instruction.operands[0], ""))
  result = _SHAPE.search(instruction.type)
  contracted = _CONTRACTED.search(instruction.attributes)
  if not (left and result and contracted):
    return 0.0, "", 0
  dims, out = _ints(left[2]), _ints(result[2])
  shared = math.prod(dims[i] for i in _ints(contracted[1]))
  columns = out[-1] if out else 1
  rows = math.prod(out) // max(1, columns)
  tiles = -(-rows // 128) * -(-columns // 128)
  return 2.0 * math.prod(out) * shared, left[1], tiles


def _fusion(instruction: Instruction, body: Sequence[Instruction]) -> Cost:
  """Operands that are only sliced count by their slices, updates in place by the update."""
  types = {i.name: i.type for i in body}
  users = defaultdict(list)
  for i in body:
    for name in i.operands:
      users[name].append(i)
  read, in_place = 0.0, False
  for parameter in (i for i in body if i.op == "parameter"):
    uses, whole = _uses(parameter.name, users), size(parameter.type)
    if uses and all(u.op in _SLICES and u.operands[0] == name for name, u in uses):
      read += min(whole, sum(size(u.type) for _, u in uses))
    elif uses and all(u.op == "dynamic-update-slice" and u.operands[0] == n for n, u in uses):
      in_place = True
    else:
      read += whole
  written = size(instruction.type)
  if in_place:
    for i in (i for i in body if i.op == "dynamic-update-slice"):
      written += size(types.get(i.operands[1], "")) - size(i.type)
  products = [_product(i, types) for i in body if i.op == "dot"]
  flops, tiles = sum(p[0] for p in products), sum(p[2] for p in products)
  return Cost(read + max(0.0, written), flops, products[0][1] if products else "", tiles)


def _uses(name: str, users: Mapping[str, list[Instruction]]) -> list[tuple[str, Instruction]]:
  """(name, user) of an array, through bitcasts."""
  uses, front = [], [name]
  while front:
    current = front.pop()
    for user in users[current]:
      if user.op == "bitcast":
        front.append(user.name)
      else:
        uses.append((current, user))
  return uses


def _ints(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]
