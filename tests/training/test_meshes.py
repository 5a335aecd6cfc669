"""Losses, gradients and updates on every mesh equal those of one device, whatever a config sets.

The gradient's norm and the parameters after Adam's updates stand for the gradients.
"""

import functools

import jax
import numpy as np
import pytest
import tiny

from pgjax.kernels import chunked
from pgjax.params import of_model, tree as param_tree
from pgjax.planning import hlo

pytestmark = pytest.mark.xdist_group("meshes")  # They share what is compiled.

MESHES = {
  "fsdp": dict(data=8),
  "replica x data": dict(replica=2, data=4),
  "data x tensor": dict(data=2, tensor=4),
  "data x sequence": dict(data=2, sequence=4),
  "data x tensor x sequence": dict(data=2, tensor=2, sequence=2),
}
FACTORS = "lora(rank=2, alpha=8)"
CASES = {
  "full": {},
  "lora": dict(params=[("llm/layers/.*|img/.*/kernel", FACTORS), (".*", "freeze")]),
  "qlora": dict(
    params=[
      ("llm/layers/.*", 'lora(rank=2, base="nf4")'),
      ("img/.*/kernel", 'freeze("int8", block=8)'),
      (".*", "freeze"),
    ]
  ),
  "8-bit Adam": dict(optax_name="pgjax.adam8bit"),
  "microbatches, EMA": dict(microbatches=2, ema_decay=0.5),
  "2 images, state on the host": dict(num_frames=2, opt_state_memory="host"),
  "2 images, attention in blocks": dict(num_frames=2),
}
IN_BLOCKS = "2 images, attention in blocks"
# A code of 8-bit Adam may round to the next where gradients differ in their last digit.
ROUNDED = "8-bit Adam"


def model():
  """Four image heads, so that tensor=4 splits them, too."""
  return tiny.model().clone(img=dict(tiny.IMG, num_heads=4))


def batch(case, seed):
  rows, frames = (16 if "micro" in case else 8), CASES[case].get("num_frames", 0)
  found = tiny.batch(rows=rows, seed=seed)
  if frames:
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, size=(rows, frames, tiny.RES, tiny.RES, 3))
    found |= dict(image=images.astype(np.float32), image_mask=rng.random((rows, frames)) < 0.7)
  return found


def stored_values(config):
  """As the run stores them, with factors that are not zero."""
  encoded = of_model.stored_params(model(), config).encode(tiny.parameters(model()), 0)
  flat, rng = param_tree.flatten(jax.device_get(encoded)), np.random.default_rng(1)
  for name, leaf in flat.items():
    if name.startswith("lora/"):
      flat[name] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
  return param_tree.unflatten(flat)


def trained(case, axes):
  """(trained leaves, measured values of two steps, the compiled step's text)."""
  config = tiny.config(**CASES[case])
  mesh = tiny.mesh(axes.items(), int(np.prod(list(axes.values()))))
  in_blocks = case == IN_BLOCKS and mesh.size > 1  # One device has plain attention.
  towers = model().clone(attention="chunked" if in_blocks else "plain")
  run, batches = tiny.Run(config, towers, mesh), [batch(case, seed) for seed in range(2)]
  run.train_step = run.train_step.lower(run.abstract, batches[0]).compile()
  state, log = run.steps(stored_values(config), batches)
  leaves = param_tree.flatten(jax.device_get(state.params))
  averages = {f"ema/{name}": a for name, a in (jax.device_get(state.ema) or {}).items()}
  return leaves | averages, log, run.train_step.as_text()


one_device = functools.cache(functools.partial(trained, axes=dict(data=1)))


def assert_equals_one_device(case, axes):
  leaves, log, text = trained(case, axes)
  want, want_log, _ = one_device(case)
  for ours, theirs in zip(log, want_log, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-5)
  for name, theirs in want.items():
    if theirs.dtype == np.float32:
      atol = 3e-4 if case == ROUNDED else 3e-6
      np.testing.assert_allclose(leaves[name], theirs, rtol=1e-5, atol=atol, err_msg=name)
    else:
      np.testing.assert_array_equal(leaves[name], theirs, err_msg=name)
  return text


@pytest.mark.slow
def test_all_axes_together_equal_one_device_and_gather_neither_weights_nor_logits():
  axes = MESHES["data x tensor x sequence"]
  text = assert_equals_one_device("full", axes)
  smallest = 4 * tiny.LLM["width"] * tiny.LLM["head_dim"]  # A layer's weights of a key/value head.
  for collective in hlo.collectives(text, axes):
    if collective.op == "all-gather" and collective.axes != "sequence":
      assert collective.axes in ("data", "tensor"), collective  # Never along several.
  over_tensor = [c for c in hlo.collectives(text, axes) if c.axes == "tensor"]
  sums, gathers = ([c for c in over_tensor if c.op == op] for op in ("all-reduce", "all-gather"))
  assert sums[0].count >= 4 * tiny.LLM["depth"]  # Of activations, after attention and MLP.
  assert sum(c.bytes for c in gathers) < smallest * tiny.LLM["num_heads"]


@pytest.mark.slow
def test_attention_in_blocks_on_all_axes_equals_plain_attention_on_one_device(monkeypatch):
  monkeypatch.setattr(chunked, "queries_of_a_block", lambda *sizes: 2)
  assert_equals_one_device(IN_BLOCKS, MESHES["data x tensor x sequence"])


TABLE = [(case, mesh) for case in CASES for mesh in MESHES]


@pytest.mark.long
@pytest.mark.parametrize(("case", "mesh"), TABLE, ids=lambda name: name)
def test_every_mesh_equals_one_device(case, mesh):
  assert_equals_one_device(case, MESHES[mesh])
