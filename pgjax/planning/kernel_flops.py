"""How many FLOPs have the products inside a kernel that XLA cannot look into?

From the shapes of a custom call's arrays in a compiled program: all keys are counted, also those
that a mask lets a kernel skip, and heads as they are padded.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.kernels import triton

_OURS = re.compile(r'_target="__gpu\$xla.gpu.triton".*op_name="[^"]*\b(attention_\w+)\W+pallas')
_TOKAMAX = 'custom_call_target="mosaic_gpu'


def of(instruction: Any, types: Mapping[str, str]) -> float:
  """Of an hlo_text.Instruction; 0 for what is no kernel of attention.

  tokamax's: forward 4 for each query, key and number of a head; backward, two kernels that each
  make the scores again, 6 for the gradient of queries and 8 for those of keys and values.
  """
  if instruction.op != "custom-call":
    return 0.0
  shapes = [_shape(types.get(name, "")) for name in instruction.operands[:2]]
  if kernel := _OURS.search(instruction.attributes):
    return float(triton.flops(kernel[1], *shapes))
  if _TOKAMAX in instruction.attributes:
    (batch, queries, heads, size), keys = shapes[0], shapes[1][1]
    each = 4 if "f32" in instruction.type else 8 if instruction.type.startswith("(") else 6
    return float(each * math.prod((batch, queries, heads, size, keys)))
  return 0.0


def _shape(type_text: str) -> Sequence[int]:
  found = re.search(r"\[([\d,]*)\]", type_text)
  return [int(number) for number in found[1].split(",") if number] if found else []
