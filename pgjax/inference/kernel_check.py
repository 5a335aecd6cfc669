"""Are the kernels of decoding right on the GPU at hand?

Before a program is compiled, they run on small random input with the model's head sizes, and are
compared with plain JAX. Where one fails or differs, decoding does without all of them.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.distributed import processes
from pgjax.errors import cut
from pgjax.kernels import choice
from pgjax.layers import attention, quantization

log = logging.getLogger("pgjax")

TOLERANCE = 0.02  # Of the norm. Bfloat16 alone gives 0.004.
_SLOTS, _ROWS, _OUTPUTS, _INPUTS = 77, 20, 192, 512


def right(model: Any, mesh: Any) -> bool:
  """Whether decoding may use its kernels; why not is logged. True where none would be used."""
  device = choice.device_of(mesh)
  if not (device.local and choice.runs_triton(model.dtype, device)):
    return True
  c = model.llm_config
  heads = (c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim, c.attn_logits_softcap)
  trouble = _trouble(*heads, model.dtype, mesh.local_devices[0])
  return not any(processes.gather_objects(trouble))


@functools.cache
def _trouble(K, G, H, softcap, dtype, device) -> str | None:
  """What is wrong with the kernels; None if nothing is."""
  cases = dict(attention=lambda: attention_pair(K, G, H, softcap, dtype))
  for kind in ("int8", "nf4"):
    cases[f"the product with {kind}"] = functools.partial(product_pair, kind, dtype)
    gated = functools.partial(product_pair, kind, dtype, gated=True)
    cases[f"the gated product with {kind}"] = gated
  for name, case in cases.items():
    try:
      with jax.default_device(device):
        error = float(case().error())
    except Exception as failure:  # Of a compiler, a driver or a kernel: of any type.
      trouble = f"fails ({cut(' '.join(str(failure).split()))})"
    else:
      if error <= TOLERANCE:
        continue
      trouble = f"differs from plain JAX by {error:.2g} of its norm (allowed: {TOLERANCE:g})"
    kind = device.device_kind
    log.warning("On this %s, the kernel of %s %s: decoding does without.", kind, name, trouble)
    return trouble
  return None


class Pair(NamedTuple):
  """The same work by a kernel and by plain JAX, both jitted, without arguments."""

  kernel: Callable[[], jax.Array]
  plain: Callable[[], jax.Array]

  def error(self) -> jax.Array:
    """The relative difference of the results."""
    ours, right = (run().astype(jnp.float32) for run in self)
    return jnp.linalg.norm(ours - right) / jnp.linalg.norm(right)


def attention_pair(
  K: int, G: int, H: int, softcap: float, dtype: str, *, shape=(2, 3, _SLOTS), **how: Any
) -> Pair:
  """kernels/decode_attention.py and plain attention; shape: examples, tokens, slots."""
  from pgjax.kernels import decode_attention  # Pallas takes long to import.

  rng, (B, T, S) = np.random.default_rng(0), shape
  shapes = ((B, T, K, G, H), (B, K, H, S), (B, K, S, H))
  q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
  q, mask = (q * H**-0.5).astype(dtype), rng.random((B, T, S)) < 0.5
  mask[..., 0] = mask[-1, :, S // 2] = True
  mask[-1, :, : S // 2] = mask[-1, :, S // 2 + 9 :] = False  # The kernel does not read these slots.
  kernel = jax.jit(functools.partial(decode_attention.attend, softcap=softcap, **how))
  plain = jax.jit(attention.attend, static_argnums=4)
  k_BSKH, v_BSKH = jnp.transpose(k, (0, 3, 1, 2)), jnp.swapaxes(v, 1, 2)
  return Pair(lambda: kernel(q, k, v, mask), lambda: plain(q, k_BSKH, v_BSKH, mask, softcap))


def product_pair(
  kind: str, dtype: str, *, gated: bool = False, shape=(_ROWS, _OUTPUTS, _INPUTS), **how: Any
) -> Pair:
  """kernels/quantized_product.py and a product with decoded numbers; shape: rows, outputs, inputs.

  gated: with layers/geglu.py on the halves of the outputs.
  """
  from pgjax.kernels import quantized_product

  rng, scheme, (rows, outputs, inputs) = np.random.default_rng(0), quantization.Scheme(kind), shape
  x = jnp.asarray(rng.normal(size=(rows, inputs)), dtype)
  w_OI = rng.normal(size=(outputs, inputs)).astype(np.float32)
  parts = quantization.encode(w_OI.reshape(1, -1), scheme, np)
  order = quantization.Order((0, 1))
  stored = quantization.Quantized(
    {name: jnp.asarray(part[0]) for name, part in parts.items()}, scheme, w_OI.shape, order
  )
  by_rows = quantization.by_rows(stored, 1)
  table = jnp.asarray(quantization.NF4) if kind == "nf4" else None
  kernel = jax.jit(functools.partial(quantized_product.product, gated=gated, **how))

  @jax.jit
  def plain(x, stored):
    y = x @ quantization.weight(stored, dtype).T
    if not gated:
      return y
    gate, up = (half.astype(jnp.float32) for half in jnp.split(y, 2, axis=1))
    return (jax.nn.gelu(gate) * up).astype(dtype)

  return Pair(lambda: kernel(x, by_rows.codes, by_rows.scale, table), lambda: plain(x, stored))
