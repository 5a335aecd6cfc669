"""One layer's attention by each implementation, for benchmarks/gpu.py."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import gpu_kernels


class Shape(NamedTuple):
  """Of one layer: `prefix` of the T tokens see each other, the others what is before them."""

  name: str
  B: int
  T: int
  K: int
  G: int
  H: int
  softcap: float
  prefix: int


def shapes(tiny: bool) -> list[Shape]:
  """PaliGemma 2 3B's decoder and SigLIP, as in the steps."""
  found = [
    Shape("decoder 224 px", 32, 384, 4, 2, 256, 50.0, 352),
    Shape("decoder 448 px", 8, 1536, 4, 2, 256, 50.0, 1408),
    Shape("decoder 896 px", 2, 4608, 4, 2, 256, 50.0, 4480),
    Shape("PaliGemma 1, 896 px", 2, 4608, 1, 8, 256, 0.0, 4480),
    Shape("SigLIP 448 px", 8, 1024, 16, 1, 72, 0.0, 1024),
    Shape("SigLIP 896 px", 2, 4096, 16, 1, 72, 0.0, 4096),
  ]
  if tiny:
    found = [s._replace(B=1, T=s.T // 64, H=s.H // 4, prefix=s.prefix // 64) for s in found]
  return found


def _mask(shape):
  """Bool [1, T, T]: prefix-LM."""
  import jax.numpy as jnp

  t = jnp.arange(shape.T)
  return ((t[None] <= t[:, None]) | (t[None] < shape.prefix))[None]


def implementations(shape: Shape) -> dict[str, Callable[..., Any]]:
  """{name: f(q [B, T, K, G, H], k, v [B, S, K, H])}; q comes scaled."""
  import jax
  import jax.numpy as jnp

  from pgjax.kernels import choice, on_mesh
  from pgjax.kernels.visible_keys import VisibleKeys
  from pgjax.layers import attention

  B, T, K, G, H = shape.B, shape.T, shape.K, shape.G, shape.H
  mask = None if shape.prefix == T else jnp.broadcast_to(_mask(shape), (B, T, T))

  def plain(q, k, v):
    return attention.attend(q, k, v, mask, shape.softcap)

  def cudnn(q, k, v):
    heads = q.reshape(B, T, K * G, H)
    out = jax.nn.dot_product_attention(
      heads, k, v, mask=None if mask is None else mask[:, None], scale=1.0, implementation="cudnn"
    )
    return out.reshape(B, T, K, G, H)

  seen = jnp.broadcast_to(jnp.maximum(jnp.arange(T) + 1, shape.prefix), (B, T))
  seen = None if mask is None else VisibleKeys(seen)

  def ours(name, q, k, v):
    return attention.dot_product(q, k, v, seen, implementation=name, softcap=shape.softcap)

  found = dict(plain=plain, chunked=functools.partial(ours, "chunked"))
  asked, device = choice.Shape(T, H, "bfloat16", shape.softcap), choice.device_of()
  for name in ("triton", "flash"):
    if choice.misfit(name, asked, device) is None:
      found[name] = functools.partial(ours, name)
  if device.platform != "gpu":  # Without a compute capability our kernels are interpreted.
    interpreted = on_mesh.Kernel("triton", shape.softcap, "float32", None, None)
    return found | dict(triton=lambda q, k, v: on_mesh.attend(q, k, v, seen, interpreted))
  if not shape.softcap:
    found["cudnn"] = cudnn
  try:
    from tokamax._src.ops.attention import api, base
  except ImportError:
    return found
  visible = base.Mask(k_end=jnp.maximum(jnp.arange(T) + 1, shape.prefix)[None, None])

  def tokamax(name, q, k, v):
    out = api.IMPLEMENTATIONS[name](
      q.reshape(B, T, K * G, H),
      k,
      v,
      mask=visible,
      logits_scale=1.0,
      logits_soft_cap=shape.softcap or None,
    )
    return out.reshape(B, T, K, G, H)

  for name in ("mosaic_gpu", "triton", "xla_chunked"):
    if name in api.IMPLEMENTATIONS:
      found[f"tokamax {name}"] = functools.partial(tokamax, name)
  return found


def _arrays(shape):
  """q, k, v and the gradient of the output, of scores so wide that the softmax is not uniform."""
  import jax
  import jax.numpy as jnp

  B, T, K, G, H = shape.B, shape.T, shape.K, shape.G, shape.H
  keys = jax.random.split(jax.random.key(0), 4)
  sizes = [(B, T, K, G, H), (B, T, K, H), (B, T, K, H), (B, T, K, G, H)]
  pairs = zip(keys, sizes, strict=True)
  q, k, v, dout = (jax.random.normal(key, size, jnp.bfloat16) for key, size in pairs)
  return q * H**-0.5 * 4, k, v, dout


def _pulled_back(attend, q, k, v, dout):
  import jax

  out, pull = jax.vjp(attend, q, k, v)
  return out, pull(dout.astype(out.dtype))


def reference(shape: Shape) -> Any:
  """Output and gradients of the first row by plain attention in float32, for `calls`.

  The scores of all rows in float32 may not fit.
  """
  import jax
  import jax.numpy as jnp

  plain = implementations(shape._replace(B=1))["plain"]
  with jax.default_matmul_precision("highest"):
    wide = [x[:1].astype(jnp.float32) for x in _arrays(shape)]
    return jax.jit(functools.partial(_pulled_back, plain))(*wide)


def calls(shape: Shape, attend: Callable[..., Any], right: Any) -> tuple[Any, Any, Any]:
  """(forward, forward and backward, errors of both relative to `right`)."""
  import jax

  q, k, v, dout = _arrays(shape)
  forward = jax.jit(attend)
  both = jax.jit(functools.partial(_pulled_back, attend))
  ours = jax.tree.map(lambda x: x[:1], both(q, k, v, dout))
  errors = [
    max(map(gpu_kernels.relative, *map(jax.tree.leaves, pair)))
    for pair in zip(ours, right, strict=True)
  ]
  return lambda: forward(q, k, v), lambda: both(q, k, v, dout), errors
