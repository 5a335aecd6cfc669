"""The kernels of decoding, interpreted on the CPU, against plain JAX."""

import itertools
import logging

import pytest

from pgjax.inference import kernel_check
from pgjax.kernels import choice, quantized_product


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_attention_to_a_cache_equals_plain(dtype):
  """GQA with a soft-cap, MQA without; masks of each query; slots that fill no whole step."""
  for K, G, H, softcap in ((2, 2, 16, 5.0), (1, 3, 32, 0.0)):
    pair = kernel_check.attention_pair(K, G, H, softcap, dtype, interpret=True)
    assert pair.error() <= (1e-6 if dtype == "float32" else 4e-3)


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
