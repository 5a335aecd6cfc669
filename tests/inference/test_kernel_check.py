"""The kernels of decoding, interpreted on the CPU, against plain JAX."""

import itertools
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.inference import kernel_check
from pgjax.kernels import choice, decode_attention, quantized_product
from pgjax.layers import attention


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_attention_to_a_cache_equals_plain(dtype):
  """GQA with a soft-cap, MQA without; masks of each query; slots that fill no whole step."""
  for K, G, H, softcap in ((2, 2, 16, 5.0), (1, 3, 32, 0.0)):
    pair = kernel_check.attention_pair(K, G, H, softcap, dtype, interpret=True)
    assert pair.error() <= (1e-6 if dtype == "float32" else 4e-3)


def test_slots_before_the_first_and_after_the_last_seen_are_not_read():
  """Those of padding, and those of tokens to come; the kernel reads 32 at a time."""
  B, T, S, K, G, H = 2, 1, 200, 2, 3, 16
  rng, first, after = np.random.default_rng(0), 70, 101
  q, k, v = (
    rng.normal(size=shape).astype(np.float32)
    for shape in ((B, T, K, G, H), (B, K, H, S), (B, K, S, H))
  )
  mask = np.zeros((B, T, S), bool)
  mask[..., first:after] = True
  read = np.arange(S) // 32
  unread = (read < first // 32) | (read > (after - 1) // 32)
  assert 0 < unread.sum() < S
  arrays = [jnp.asarray(a) for a in (q, k, v, mask)]
  right = decode_attention.attend(*arrays, softcap=5.0, interpret=True)
  k[..., unread], v[..., unread, :] = np.nan, np.nan
  q, _, _, mask = arrays
  out = decode_attention.attend(
    q, jnp.asarray(k), jnp.asarray(v), mask, softcap=5.0, interpret=True
  )
  np.testing.assert_array_equal(out, right)
  k_BSKH, v_BSKH = jnp.transpose(arrays[1], (0, 3, 1, 2)), jnp.swapaxes(arrays[2], 1, 2)
  plain = attention.attend(q, k_BSKH, v_BSKH, mask, 5.0)
  np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)


def test_products_with_codes_equal_those_with_decoded_numbers():
  for kind, gated in itertools.product(("int8", "nf4"), (False, True)):
    for dtype, bound in (("float32", 1e-6), ("bfloat16", 4e-3)):
      pair = kernel_check.product_pair(kind, dtype, gated=gated, interpret=True)
      assert pair.error() <= bound


def test_a_large_gpu_is_kept_busy_with_few_reads_of_x():
  for outputs, inputs in ((18432, 2304), (4096, 2304), (2304, 2048), (2304, 9216)):
    n, splits = quantized_product.tiling_of(64, outputs, inputs, 128)
    assert outputs % n == inputs % (128 * splits) == 0
    assert outputs // n * splits >= 128
  gated = quantized_product.tiling_of(64, 16384, 2048, 128, gated=True)
  assert gated == (64, 1)  # Two sums of 128 do not fit the shared memory of an L4.
  assert quantized_product.fits(4096, 2048, "nf4", 64)
  assert not quantized_product.fits(4096, 2048, "nf4", 128)


def test_a_kernel_that_fails_is_said_once_and_not_used(monkeypatch, caplog):
  """On this CPU Triton cannot run."""
  import tiny

  model = tiny.model(dtype="bfloat16")
  gpu = choice.Device("gpu", 9.0)
  monkeypatch.setattr(choice, "device_of", lambda mesh=None: gpu)
  with caplog.at_level(logging.WARNING, "pgjax"):
    assert not kernel_check.right(model, tiny.mesh())
    assert not kernel_check.right(model, tiny.mesh())
  (record,) = caplog.records
  assert "the kernel of attention fails" in record.message
