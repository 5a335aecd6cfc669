"""Random inputs of attention, masks of every kind, and how implementations are compared on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import attention
from pgjax.models import paligemma

B, T, PATCHES = 4, 21, 6  # Odd: no block of 8 divides it.


def prefix_lm(seed=0, image_valid=None):
  """Two images of PATCHES tokens, a prefix and a suffix of random lengths, then padding."""
  rng = np.random.default_rng(seed)
  begin = 2 * PATCHES + rng.integers(1, 5, size=(B, 1))
  mask_ar = (np.arange(T) >= begin).astype(np.int32)
  masks = [mask_ar]
  if image_valid is not None:
    valid = np.ones((B, T), bool)
    valid[:, : 2 * PATCHES] = np.repeat(image_valid, PATCHES, axis=1)
    masks.append(valid)
  return jax.tree.map(jnp.asarray, paligemma.prefix_lm_keys(*map(jnp.asarray, masks)))


MASKS = {
  "none": lambda: None,
  "prefix": prefix_lm,
  "one of two images masked": lambda: prefix_lm(1, [[0, 1], [1, 0], [1, 1], [0, 0]]),
  "padding first": lambda: VisibleKeys(
    jnp.where(jnp.arange(T) < 3, 0, T) * jnp.ones((B, 1), int),
    jnp.ones((B, 1), bool) & (jnp.arange(T) >= 3),
  ),
}
# K, G, H, soft-cap.
HEADS = [(4, 1, 72, 0.0), (2, 2, 64, 50.0), (1, 4, 128, 0.0), (2, 3, 256, 50.0), (1, 2, 8, 500.0)]


def arrays(K, G, H, dtype, seed=0):
  rng = np.random.default_rng(seed)
  shapes = [(B, T, K, G, H), (B, T, K, H), (B, T, K, H), (B, T, K, G, H)]
  q, k, v, dout = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
  return q * (3 * H**-0.5), k, v, dout


def run(attend, q, k, v, dout, visible):
  """(out, dq, dk, dv); rows that see nothing have no cotangent, as nothing reads them."""
  if visible is not None:
    dout = jnp.where((visible.end_BT > 0)[..., None, None, None], dout, 0)

  @jax.jit
  def both(q, k, v, dout, visible):
    out, pull = jax.vjp(lambda *a: attend(*a, visible), q, k, v)
    return out, *pull(dout)

  out, *grads = both(q, k, v, dout, visible)
  return [jnp.where((dout != 0).any(-1, keepdims=True), out, 0), *grads]


def switched(name, softcap=0.0, score_dtype="float32", **fields):
  fields = dict(implementation=name, softcap=softcap, score_dtype=score_dtype) | fields
  return functools.partial(attention.dot_product, **fields)


def assert_close(ours, theirs, tolerance):
  for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    assert np.isfinite(a).all()
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name
