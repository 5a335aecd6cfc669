"""The kernels of decoding at the shapes of PaliGemma 2 3B, for benchmarks/gpu.py."""

import functools
from collections.abc import Callable
from typing import Any

# Outputs, inputs and whether GeGLU follows, of a layer's matrices as decoding joins them.
MATRICES = {
  "queries, keys, values": (4096, 2304, False),
  "attention's output": (2304, 2048, False),
  "gate and up": (18432, 2304, True),
  "down": (2304, 9216, False),
}
SLOTS = {"224 px": 384, "448 px": 1152}  # Of the cache: image, prompt and 64 to 112 new tokens.


def cases(tiny: bool) -> dict[str, Callable[[], Any]]:
  """{name: makes a kernel_check.Pair}; tiny: interpreted, an eighth of the size, on a CPU."""
  import jax

  from pgjax.inference import kernel_check

  interpret = jax.default_backend() == "cpu"
  small, found = 8 if tiny else 1, {}
  for batch in (64, 16):  # Fewer examples attend by plain JAX: kernels/choice.py.
    for where, slots in SLOTS.items():
      found[f"attention to a cache, {where}, batch {batch}"] = functools.partial(
        kernel_check.attention_pair, 4, 2, 256 // small, 50.0, "bfloat16",
        shape=(batch // small, 1, slots // small), interpret=interpret,
      )  # fmt: skip
  for kind in ("int8", "nf4"):
    for rows in (64, 1):
      for name, (outputs, inputs, gated) in MATRICES.items():
        shape = (rows, outputs // small, max(128, inputs // small // 128 * 128))
        found[f"{kind}, {name}, {rows} rows"] = functools.partial(
          kernel_check.product_pair, kind, "bfloat16", gated=gated, shape=shape, interpret=interpret
        )
  return found
