"""Every implementation that runs on a CPU equals plain attention: outputs and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.distributed import mesh as mesh_lib
from pgjax.kernels import chunked, cudnn
from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import attention, placement
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


@pytest.fixture
def blocks_of_8(monkeypatch):
  monkeypatch.setattr(chunked, "queries_of_a_block", lambda *sizes: 8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_chunked_equals_plain(blocks_of_8, dtype, tolerance):
  for number, (K, G, H, softcap) in enumerate(HEADS):
    name = list(MASKS)[number % len(MASKS)]
    values = (*arrays(K, G, H, dtype, number), MASKS[name]())
    ours, plain = (run(switched(n, softcap), *values) for n in ("chunked", "plain"))
    assert ours[0].dtype == dtype
    assert_close(ours, plain, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", MASKS)
def test_chunked_equals_plain_for_every_mask_and_head(blocks_of_8, dtype, mask):
  for seed, (K, G, H, softcap) in enumerate(HEADS):
    values = (*arrays(K, G, H, dtype, seed), MASKS[mask]())
    for score_dtype in {"float32", dtype}:
      options = dict(softcap=softcap, score_dtype=score_dtype)
      ours, plain = (run(switched(n, **options), *values) for n in ("chunked", "plain"))
      assert_close(ours, plain, 1e-5 if dtype == "float32" else 2e-2)


def test_cudnn_is_asked_for_what_plain_attention_computes(monkeypatch):
  monkeypatch.setattr(cudnn, "attend", functools.partial(cudnn.attend, implementation="xla"))
  for K, G, mask in ((4, 1, "none"), (1, 4, "prefix")):
    values = (*arrays(K, G, 8, "float32"), MASKS[mask]())
    assert_close(run(cudnn.attend, *values), run(switched("plain"), *values), 1e-5)


def test_numbers_of_keys_are_the_mask():
  rng = np.random.default_rng(0)
  mask_ar, valid = rng.integers(0, 2, size=(8, 30)), rng.random((8, 30)) < 0.7
  for v in (None, jnp.asarray(valid)):
    seen = paligemma.prefix_lm_keys(jnp.asarray(mask_ar), v)
    np.testing.assert_array_equal(seen.mask(30), paligemma.prefix_lm_mask(jnp.asarray(mask_ar), v))


MESHES = [
  [("replica", 2), ("data", 2), ("tensor", 2)],
  [("data", 2), ("tensor", 2), ("sequence", 2)],
  [("sequence", 8)],
]


@pytest.mark.slow
@pytest.mark.parametrize("spec", MESHES, ids=str)
def test_devices_of_a_mesh_compute_their_own_queries_and_heads(blocks_of_8, spec):
  mesh = mesh_lib.make_mesh(spec, jax.devices())
  constrain = placement.Placement(mesh)
  q, k, v, dout = arrays(2, 2, 16, "float32")
  visible = MASKS["one of two images masked"]()
  wide = T + -T % 8
  grow = lambda a, value=0: jnp.pad(  # noqa: E731
    a, ((0, 0), (0, wide - T), *[(0, 0)] * (a.ndim - 2)), constant_values=value
  )
  visible = VisibleKeys(grow(visible.end_BT), grow(visible.valid_BS, False))
  values = (*(grow(a) for a in (q, k, v, dout)), visible)
  ours = run(switched("chunked", 5.0, constrain=constrain), *values)
  assert_close(ours, run(switched("plain", 5.0), *values), 1e-5)
