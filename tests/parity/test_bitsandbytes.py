"""Four-bit weights against bitsandbytes': the same codes, scales and numbers, of whole models."""

import numpy as np
import pytest

from pgjax.layers import quantization
from tests.params import test_quantized_order

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("block", [64, 128])
def test_nf4_codes_scales_and_numbers_are_bitsandbytes(block):
  scheme = quantization.Scheme("nf4", block)
  x = np.random.default_rng(0).normal(size=(96, 256)).astype(np.float32)
  x[0] = 0.0
  packed, state = functional.quantize_4bit(torch.tensor(x), blocksize=block, quant_type="nf4")
  np.testing.assert_array_equal(quantization.NF4, state.code.numpy())
  ours = quantization.encode(x.reshape(1, -1), scheme, np)
  np.testing.assert_array_equal(ours["nf4"][0], packed.numpy().ravel())
  np.testing.assert_array_equal(ours["scale"][0], state.absmax.numpy())
  numbers = quantization.decode({p: a[0] for p, a in ours.items()}, scheme, x.shape, np)
  theirs = functional.dequantize_4bit(packed, state).numpy()
  np.testing.assert_allclose(numbers, theirs, rtol=1e-6, atol=0)


def test_codes_of_a_million_numbers_are_bitsandbytes():
  """So many that dividing by a scale differs from multiplying by its inverse for some."""
  x = np.random.default_rng(0).normal(size=(1024, 4096)).astype(np.float32)
  packed, state = functional.quantize_4bit(torch.tensor(x), blocksize=64, quant_type="nf4")
  ours = quantization.encode(x.reshape(1, -1), quantization.Scheme("nf4"), np)
  np.testing.assert_array_equal(ours["nf4"][0], packed.numpy().ravel())
  np.testing.assert_array_equal(ours["scale"][0], state.absmax.numpy())


def bitsandbytes(weight):
  """The numbers of a tensor after bitsandbytes' four bits, in its defaults without nesting."""
  packed, state = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4")
  return functional.dequantize_4bit(packed, state).numpy()


@pytest.mark.parametrize("llm", test_quantized_order.MODELS)
def test_our_base_is_the_one_that_bitsandbytes_makes_of_the_exported_model(llm, tmp_path):
  test_quantized_order.check_whole_model(llm, tmp_path, bitsandbytes)
