"""Every implementation that runs on a CPU equals plain attention: outputs and gradients."""

import functools
import itertools

import attention_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.distributed import mesh as mesh_lib
from pgjax.kernels import choice, chunked, cudnn, on_mesh, triton
from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import placement
from pgjax.models import paligemma


@pytest.fixture
def blocks_of_8(monkeypatch):
  monkeypatch.setattr(chunked, "queries_of_a_block", lambda *sizes: 8)


def assert_chunked_equals_plain(sizes, mask, dtype, seed=0, **fields):
  K, G, H, softcap = sizes
  values = (*cases.arrays(K, G, H, dtype, seed), cases.MASKS[mask]())
  forms = (cases.switched(name, softcap, **fields) for name in ("chunked", "plain"))
  ours, plain = (cases.run(form, *values) for form in forms)
  assert ours[0].dtype == dtype
  cases.assert_close(ours, plain, 1e-5 if dtype == "float32" else 2e-2)


def test_chunked_equals_plain(blocks_of_8):
  assert_chunked_equals_plain((2, 2, 64, 50.0), "prefix", "float32")
  assert_chunked_equals_plain((1, 2, 72, 0.0), "one of two images masked", "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", cases.MASKS)
def test_chunked_equals_plain_for_every_mask_and_head(blocks_of_8, dtype, mask):
  for seed, sizes in enumerate(cases.HEADS):
    for score_dtype in {"float32", dtype}:
      assert_chunked_equals_plain(sizes, mask, dtype, seed, score_dtype=score_dtype)


def assert_triton_equals_plain(sizes, mask, dtype, seed=0):
  """The kernels are interpreted, with blocks of 16."""
  K, G, H, softcap = sizes
  values = (*cases.arrays(K, G, H, dtype, seed), cases.MASKS[mask]())
  kernel = on_mesh.Kernel("triton", softcap, "float32")
  ours = cases.run(lambda *qkv: on_mesh.attend(*qkv, kernel), *values)
  plain = cases.run(cases.switched("plain", softcap), *values)
  cases.assert_close(ours, plain, 1e-5 if dtype == "float32" else 2e-2)


def test_triton_equals_plain():
  assert_triton_equals_plain((1, 2, 72, 50.0), "prefix", "float32")


@pytest.mark.slow
def test_triton_equals_plain_without_a_soft_cap():
  assert_triton_equals_plain((2, 2, 64, 0.0), "one of two images masked", "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", cases.MASKS)
def test_triton_equals_plain_for_every_mask_and_head(dtype, mask):
  for seed, sizes in enumerate(cases.HEADS):
    assert_triton_equals_plain(sizes, mask, dtype, seed)


def test_heads_are_cut_into_powers_of_two():
  sizes = {H: [size for _, size in triton.parts(H)] for H in (8, 64, 72, 96, 128, 256)}
  assert sizes == {8: [16], 64: [64], 72: [64, 16], 96: [64, 32], 128: [128], 256: [256]}
  assert triton.parts(72) == ((0, 64), (64, 16))


def test_blocks_have_fewer_pairs_than_all_queries_and_keys():
  for B, T, S, K, G in itertools.product((1, 4, 64), (9, 384, 1025, 4608), (4608,), (1, 4), (1, 8)):
    block = chunked.queries_of_a_block(B, T, S, K, G)
    assert block == T <= 64 or (block % 8 == 0 and block <= 512)
    assert T <= 1024 or G * block <= T // 2


def test_cudnn_is_asked_for_what_plain_attention_computes():
  ours = functools.partial(cudnn.attend, implementation="xla")
  for K, G, mask in ((4, 1, "none"), (1, 4, "prefix")):
    values = (*cases.arrays(K, G, 8, "float32"), cases.MASKS[mask]())
    plain = cases.run(cases.switched("plain"), *values)
    cases.assert_close(cases.run(ours, *values), plain, 1e-5)


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


@pytest.mark.long
@pytest.mark.parametrize("name", ["chunked", "triton"])
@pytest.mark.parametrize("spec", MESHES, ids=str)
def test_devices_of_a_mesh_compute_their_own_queries_and_heads(
  monkeypatch, blocks_of_8, spec, name
):
  # Without a compute capability the kernels are interpreted.
  monkeypatch.setattr(choice, "choose", lambda name, *_: choice.Choice(name, ""))
  mesh = mesh_lib.make_mesh(spec, jax.devices())
  constrain = placement.Placement(mesh)
  q, k, v, dout = cases.arrays(2, 2, 16, "float32")
  visible = cases.MASKS["one of two images masked"]()
  wide = cases.T + -cases.T % 8
  grow = lambda a, value=0: jnp.pad(  # noqa: E731
    a, ((0, 0), (0, wide - cases.T), *[(0, 0)] * (a.ndim - 2)), constant_values=value
  )
  visible = VisibleKeys(grow(visible.end_BT), grow(visible.valid_BS, False))
  values = (*(grow(a) for a in (q, k, v, dout)), visible)
  ours = cases.run(cases.switched(name, 5.0, constrain=constrain), *values)
  cases.assert_close(ours, cases.run(cases.switched("plain", 5.0), *values), 1e-5)
