"""Grouped-query attention with a soft-cap and a mask: the reference, and the switch to kernels.

`attend` is plain attention. Its scores [B, K, G, T, S] are the widest array of a layer; the
hand-written backward pass recomputes them once and stores the output and the log of the softmax's
denominator (attn_out, attn_lse). `dot_product` takes an implementation by name (pgjax/kernels).

Axes: B batch, T query, S key, K key/value heads, G query heads per key/value head, H head size. A
mesh may split B, K and T; unless T is split, G and T are one axis: G is 1, and T has G * T rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from pgjax.kernels import choice, cudnn, on_mesh
from pgjax.kernels.chunked import MASKED, MAX_EXPONENT
from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import placement


def dot_product(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  visible: VisibleKeys | Bool[Array, "B T S"] | None,
  *,
  implementation: str = choice.AUTO,
  softcap: float = 0.0,
  score_dtype: str = "float32",
  constrain: placement.Placement = placement.NO_MESH,
) -> Float[Array, "B T K G H"]:
  """What `attend` computes, by the implementation of that name (kernels/choice.py).

  A mask as an array is for decoding, where T is small: see `_to_cache`.
  """
  if isinstance(visible, jax.Array):
    return _to_cache(q_BTKGH, k_BSKH, v_BSKH, visible, implementation, softcap, constrain)
  shape = (q_BTKGH.shape[1], q_BTKGH.shape[-1], q_BTKGH.dtype.name, softcap, visible is not None)
  name = chosen(implementation, choice.Shape(*shape), constrain)
  if name == choice.PLAIN:
    more = (softcap, score_dtype, constrain.sequence > 1)
    return attend(q_BTKGH, k_BSKH, v_BSKH, visible, *more)
  if name == choice.CUDNN:
    return checkpoint_name(cudnn.attend(q_BTKGH, k_BSKH, v_BSKH, visible), "attn_out")
  device = choice.device_of(constrain.mesh)
  capability = None if name == choice.CHUNKED else device.capability
  places = _places(constrain, q_BTKGH.shape)
  kernel = on_mesh.Kernel(name, softcap, score_dtype, capability, places)
  return on_mesh.attend(q_BTKGH, k_BSKH, v_BSKH, visible, kernel)


def chosen(implementation: str, shape: choice.Shape, constrain: placement.Placement) -> str:
  """The name of the implementation for such arrays on the mesh's devices."""
  shape = shape._replace(splits_tokens=constrain.sequence > 1)
  return choice.choose(implementation, shape, choice.device_of(constrain.mesh)).name


def is_kernel(implementation: str, shape: choice.Shape, constrain: placement.Placement) -> bool:
  """Whether it is a kernel for GPUs, so that the norms around it are, too (residual.py)."""
  few = shape.tokens < choice.SHORT
  return not few and chosen(implementation, shape, constrain) in choice.KERNELS


def _to_cache(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, implementation, softcap, constrain):
  """Plain attention, or a kernel that reads the cache where it is (kernels/decode_attention.py)."""
  places = _places(constrain, q_BTKGH.shape)
  B, T, K, G, _ = q_BTKGH.shape
  if places:
    B //= placement.size_of(places.mesh, places.batch)
    K //= placement.size_of(places.mesh, places.heads)
  dtypes = {a.dtype.name for a in (q_BTKGH, k_BSKH, v_BSKH)}
  dtype = dtypes.pop() if len(dtypes) == 1 else ""
  device = choice.device_of(constrain.mesh)
  if not choice.attends_to_cache(implementation, B, T * G, K, dtype, device):
    return attend(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap)
  from pgjax.kernels import decode_attention  # Pallas takes long to import.

  run = functools.partial(decode_attention.attend, softcap=softcap)
  if places:
    batch, heads = places.batch or None, places.heads or None
    q, cache = P(batch, None, heads), P(batch, heads)
    run = jax.shard_map(
      run, mesh=places.mesh, in_specs=(q, cache, cache, P(batch)), out_specs=q, check_vma=False
    )
  # XLA cancels the cache's transpositions.
  k_BKHS, v_BKSH = jnp.transpose(k_BSKH, (0, 2, 3, 1)), jnp.swapaxes(v_BSKH, 1, 2)
  return run(q_BTKGH, k_BKHS, v_BKSH, mask_BTS)


def _places(constrain, shape):
  """How a mesh splits queries of this shape; None on one device."""
  if constrain.mesh is None or constrain.mesh.size == 1:
    return None
  letters = "BTK" if constrain.splits_tokens else "B.K"
  axes = (placement.split_axes(constrain.mesh, *pair) for pair in zip(letters, shape, strict=False))
  return on_mesh.Places(constrain.mesh, *axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend(
  q_BTKGH: Float[Array, "B T K G H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  mask_BTS: VisibleKeys | Bool[Array, "B T S"] | None,
  softcap: float = 0.0,
  score_dtype: str = "float32",
  splits_tokens: bool = False,
) -> Float[Array, "B T K G H"]:
  """Softmax(cap(q k)) v, where cap(x) is softcap * tanh(x / softcap), or x if softcap is 0.

  Queries come scaled; the products q k are rounded to `score_dtype`, then the softmax is float32. A
  query without keys gets zeros under a soft-cap, else the mean of all values, as in the reference;
  nothing reads either. The result has v's dtype. splits_tokens: a mesh splits T.
  """
  return _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype, splits_tokens)[0]


def _rows(x_BTKGH, splits_tokens):
  """[B, T, K, G, H] to [B, K, G, T, H], so that all products are plain batched ones."""
  x_BKGTH = jnp.transpose(x_BTKGH, (0, 2, 3, 1, 4))
  B, K, G, T, H = x_BKGTH.shape
  return x_BKGTH if splits_tokens else x_BKGTH.reshape(B, K, 1, G * T, H)


def _unrows(x_BKGTH, like):
  B, T, K, G, H = like.shape
  return jnp.transpose(x_BKGTH.reshape(B, K, G, T, H), (0, 3, 1, 2, 4)).astype(like.dtype)


def _product(equation, a, b, dtype=jnp.float32):
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _capped(q_BKGTH, k_BSKH, mask_BTS, softcap, score_dtype):
  """Masked scores in float32, and tanh for its derivative (None without a soft-cap).

  JAX hoists layer-independent values out of a scan over layers; the barrier, and a sum instead of
  a `where`, prevent it from hoisting masks of the scores' size.
  """
  if mask_BTS is not None:
    mask_BTS, q_BKGTH = jax.lax.optimization_barrier((mask_BTS, q_BKGTH))
  scores = _product("BKGTH,BSKH->BKGTS", q_BKGTH, k_BSKH, score_dtype).astype(jnp.float32)
  tanh = jnp.tanh(scores / softcap) if softcap else None
  scores = softcap * tanh if softcap else scores
  if mask_BTS is not None:
    S = k_BSKH.shape[1]
    mask_BTS = mask_BTS.mask(S) if isinstance(mask_BTS, VisibleKeys) else mask_BTS
    B, T, _ = mask_BTS.shape
    bias_B1TS = (mask_BTS[:, None].astype(jnp.float32) - 1.0) * -MASKED
    groups = scores.shape[3] // T  # That share an axis with T.
    bias_B1TS = jnp.broadcast_to(bias_B1TS, (B, groups, T, S)).reshape(B, 1, -1, S)
    scores = scores + bias_B1TS[:, :, None]
  return scores, tanh


def _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype, splits_tokens):
  q_BKGTH = _rows(q_BTKGH, splits_tokens)
  scores_BKGTS, _ = _capped(q_BKGTH, k_BSKH, mask_BTS, softcap, score_dtype)
  if bounded := 0 < softcap <= MAX_EXPONENT:
    probs_BKGTS = jnp.exp(scores_BKGTS).astype(v_BSKH.dtype)
  else:
    largest_BKGT = jnp.max(scores_BKGTS, axis=-1)
    probs_BKGTS = jnp.exp(scores_BKGTS - largest_BKGT[..., None]).astype(v_BSKH.dtype)
  # Without the barrier XLA writes the scores a second time for the sum.
  probs_BKGTS = jax.lax.optimization_barrier(probs_BKGTS)
  total_BKGT = jnp.sum(probs_BKGTS.astype(jnp.float32), axis=-1)
  total_BKGT = jnp.where(total_BKGT > 0, total_BKGT, 1.0)
  out_BKGTH = _product("BKGTS,BSKH->BKGTH", probs_BKGTS, v_BSKH) / total_BKGT[..., None]
  # Without it a recomputed forward pass holds the float32 product until the backward pass.
  out_BTKGH = jax.lax.optimization_barrier(_unrows(out_BKGTH, like=q_BTKGH).astype(v_BSKH.dtype))
  lse_BKGT = jnp.log(total_BKGT) if bounded else jnp.log(total_BKGT) + largest_BKGT
  return checkpoint_name(out_BTKGH, "attn_out"), checkpoint_name(lse_BKGT, "attn_lse")


def _forward_rule(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype, splits_tokens):
  out, lse = _forward(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, softcap, score_dtype, splits_tokens)
  return out, (q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out, lse)


def _backward_rule(softcap, score_dtype, splits_tokens, residuals, dout_BTKGH):
  q_BTKGH, k_BSKH, v_BSKH, mask_BTS, out_BTKGH, lse_BKGT = residuals
  f32 = jnp.float32
  # Without the barrier XLA shares the scores with a recomputed forward pass and holds them.
  q_BTKGH, dout_BTKGH = jax.lax.optimization_barrier((q_BTKGH, dout_BTKGH))
  arrays = (q_BTKGH, out_BTKGH, dout_BTKGH)
  q_BKGTH, out_BKGTH, dout_BKGTH = (_rows(a, splits_tokens) for a in arrays)
  scores, tanh = _capped(q_BKGTH, k_BSKH, mask_BTS, softcap, score_dtype)
  probs = jnp.exp(scores - lse_BKGT[..., None])
  dprobs = _product("BKGTH,BSKH->BKGTS", dout_BKGTH, v_BSKH, score_dtype).astype(f32)
  mean_BKGT = jnp.sum(dout_BKGTH.astype(f32) * out_BKGTH.astype(f32), axis=-1)
  dscores = probs * (dprobs - mean_BKGT[..., None])
  if softcap:
    dscores = dscores * (1 - tanh * tanh)
  dscores, probs = dscores.astype(q_BTKGH.dtype), probs.astype(v_BSKH.dtype)
  dq_BKGTH = _product("BKGTS,BSKH->BKGTH", dscores, k_BSKH)
  dk = _product("BKGTS,BKGTH->BSKH", dscores, q_BKGTH).astype(k_BSKH.dtype)
  dv = _product("BKGTS,BKGTH->BSKH", probs, dout_BKGTH).astype(v_BSKH.dtype)
  return _unrows(dq_BKGTH, like=q_BTKGH), dk, dv, None


attend.defvjp(_forward_rule, _backward_rule)
