"""Quantized matrices equal, bit for bit, those that Hugging Face's tools make of exported weights.

A model is quantized here and exported; each linear module of the unquantized export, quantized by
the rule of bitsandbytes in numpy, must be the module of the quantized one.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.huggingface import names as hf_names
from pgjax.layers import quantization
from pgjax.params import lazy, names as param_names, storage, tree as param_tree
from tests.commands.test_convert import LLM, random_leaves, vocabulary

MODELS = ["gemma1", "gemma2", "heads_of_their_own", "odd"]  # odd: blocks that are not full.
NF4 = quantization.NF4


def reference(weight, block=64):
  """NF4 of one tensor [out, in], by bitsandbytes' documented rule, a block at a time."""
  flat = weight.astype(np.float32).reshape(-1)
  middles = (NF4[1:] + NF4[:-1]) / 2
  numbers = np.empty_like(flat)
  for start in range(0, flat.size, block):
    x = flat[start : start + block]
    largest = np.abs(x).max()
    inverse = np.float32(1) / max(largest, np.finfo(np.float32).tiny)
    numbers[start : start + block] = NF4[np.searchsorted(middles, x * inverse)] * largest
  return numbers.reshape(weight.shape)


def exported(leaves):
  """{Hugging Face's name: tensor}."""
  return {t.name: np.concatenate(list(t.blocks())) for t in hf_names.to_hf(leaves)}


def quantized(leaves, spec='freeze("nf4")'):
  """The leaves as a run with a quantized base stores and reads them."""
  stored = storage.of({n: leaf.shape for n, leaf in leaves.items()}, [(".*", spec)], "float32")
  arrays = {}
  for name, leaf in leaves.items():
    if storage.scheme_of(stored.rules[name]):
      parts = lazy.encode(name, leaf, stored)
      arrays |= {f"{name}/{part}": array for part, array in parts.items()}
    else:
      arrays[name] = leaf
  return lazy.decode_all(arrays, stored)[0], arrays, stored


def check_whole_model(llm, tmp_path, quantize):
  """Compares every tensor of the exported model with its quantized counterpart."""
  leaves = random_leaves(vocabulary(LLM[llm]))
  plain, ours = exported(leaves), exported(quantized(leaves)[0])
  assert plain.keys() == ours.keys()
  modules = 0
  for row in hf_names.table({n: leaf.shape for n, leaf in leaves.items()}):
    for _, name in hf_names.names_of(row, leaves[row.name].shape):
      if param_names.matrix(row.name):
        modules += 1
        np.testing.assert_array_equal(ours[name], quantize(plain[name]), name)
      else:
        np.testing.assert_array_equal(ours[name], plain[name], name)
  assert modules >= 20


@pytest.mark.parametrize("llm", MODELS)
def test_every_module_of_a_model_is_quantized_as_hugging_face_stores_it(llm, tmp_path):
  check_whole_model(llm, tmp_path, reference)


@pytest.mark.parametrize(
  ("llm", "kind", "double"),
  [
    ("odd", "nf4", True),
    pytest.param("gemma2", "int8", False, marks=pytest.mark.slow),
    *(
      pytest.param(llm, kind, double, marks=pytest.mark.long)
      for llm, kind, double in itertools.product(("gemma2", "odd"), ("nf4", "int8"), (False, True))
    ),
  ],
)
def test_the_model_reads_what_is_exported(llm, kind, double):
  """Decoded on the device inside the model and decoded on the host: the same matrices."""
  leaves = random_leaves(vocabulary(LLM[llm]))
  host, arrays, stored = quantized(leaves, f'freeze("{kind}", block=32, double={double})')
  flat = {name: jnp.asarray(leaf.whole()) for name, leaf in arrays.items()}
  shapes = {n: (a.shape, a.dtype) for n, a in param_tree.flatten(stored.abstract()).items()}
  for name in shapes.keys() - leaves.keys():
    assert shapes[name] == (flat[name].shape, flat[name].dtype), name
  read = param_tree.flatten(stored.for_model(flat))
  for name, value in read.items():
    if not isinstance(value, quantization.Quantized):
      continue
    layers = [value]
    if name.startswith(param_names.STACKED):
      count = stored.shapes[name].shape[0]
      layers = [jax.tree.map(lambda a, i=i: a[i], value) for i in range(count)]
    device = np.stack([np.asarray(quantization.weight(layer, "float32")) for layer in layers])
    want = host[name].whole()
    np.testing.assert_allclose(device.reshape(want.shape), want, rtol=1e-6, atol=1e-7, err_msg=name)


def test_codes_made_in_the_step_are_those_made_while_loading():
  leaves = random_leaves(vocabulary(LLM["odd"]))
  _, arrays, stored = quantized(leaves)
  values = param_tree.unflatten({n: jnp.asarray(leaf.whole()) for n, leaf in leaves.items()})
  encoded = param_tree.flatten(jax.jit(lambda v: stored.encode(v, 0))(values))
  for name, leaf in arrays.items():
    if name.endswith(("/nf4", "/scale")) and name.rsplit("/", 1)[0] in stored.shapes:
      np.testing.assert_array_equal(encoded[name], leaf.whole(), name)
