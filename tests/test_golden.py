"""pgjax against numbers that the reference implementation computed (tests/golden/README.md).

Reads every .npz in the folder named by PGJAX_GOLDEN_DIR (default: tests/golden); a file's `meta`
holds all that is needed to build model, optimizer and batches.
"""

import functools
import json
import os
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

pytestmark = pytest.mark.xdist_group("golden")  # They share what is compiled.

FOLDER = pathlib.Path(os.environ.get("PGJAX_GOLDEN_DIR", pathlib.Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))


class Golden:
  """One file: arrays by prefix, and what its meta describes."""

  def __init__(self, path, attention="auto"):
    from pgjax.models import paligemma

    with np.load(path, allow_pickle=False) as file:
      self.arrays = {name: file[name] for name in file.files}
    self.meta = json.loads(str(self.arrays.pop("meta")))
    self.model = paligemma.Model(
      img=self.meta["img"],
      llm=self.meta["llm"],
      dtype=self.meta["dtype"],
      attention=attention,
      cache_dtype=self.meta["decode"]["cache_dtype"],
    )

  def flat(self, prefix):
    return {
      name.removeprefix(prefix): jnp.asarray(a)
      for name, a in self.arrays.items()
      if name.startswith(prefix)
    }

  def tree(self, prefix):
    from pgjax.params import tree as param_tree

    return param_tree.unflatten(self.flat(prefix))

  def config(self, **fields):
    """The run that the reference made, as a config of ours."""
    from pgjax.params import rules as param_rules

    optimizer = dict(self.meta["optimizer"])
    patterns, schedule = param_rules.from_schedule(optimizer.pop("schedule"))
    image, text = self.arrays["batch/image"], self.arrays["batch/text"]
    config = dict(
      seed=0,
      res=image.shape[1],
      num_frames=0,
      text_len=text.shape[1] - 1,
      input=dict(batch_size=len(text)),
      params=patterns or [(".*", "train")],
      schedule=schedule,
      lr_mults=None,
      wd_mults=None,
      microbatches=1,
      accumulation_dtype="float32",
      stochastic_rounding=False,
      opt_state_memory="device",
      ema_decay=None,
      sharding_strategy=[(".*", "replicate")],
    )
    return ml_collections.ConfigDict({**config, **optimizer, **fields})

  def batch(self, step=0):
    """The batch of a step; meta["train_batches"] says in words what is done here."""
    batch = self.flat("batch/")
    vocab_size = self.meta["llm"]["vocab_size"]
    moved = (batch["text"] - 4 + 7 * step) % (vocab_size - 4) + 4
    return {**batch, "text": jnp.where(batch["text"] > 3, moved, batch["text"])}


SECOND = {"paligemma1_sgd_attention_only", "paligemma2_27b_style_frozen_vit"}


def _cases():
  """Each file as a run computes it; then with attention in blocks, one file of them in CI."""
  for path in FILES:
    yield pytest.param((path, "auto"), marks=pytest.mark.slow if path.stem in SECOND else ())
  for path in FILES:
    mark = pytest.mark.slow if path.stem in SECOND and "27b" in path.stem else pytest.mark.long
    yield pytest.param((path, "chunked"), marks=mark)


@pytest.fixture(
  params=_cases(),
  ids=lambda case: case[0].stem + ("" if case[1] == "auto" else f"-{case[1]}"),
  scope="module",
)
def golden(request):
  from pgjax.kernels import chunked

  path, attention = request.param
  with mock.patch.object(chunked, "queries_of_a_block", return_value=8):
    yield Golden(path, attention)


def assert_close(ours, theirs, tolerance):
  """Within `tolerance` of the largest value."""
  scale = np.abs(np.asarray(theirs)).max()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def one_device_mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


def test_there_are_golden_files():
  assert FILES, f"{FOLDER} holds no .npz"


def test_the_tree_of_parameters_is_the_references(golden):
  from pgjax.params import of_model

  assert of_model.param_shapes(golden.model, golden.config().res) == {
    n: a.shape for n, a in golden.flat("params/").items()
  }


def test_logits_and_image_embedding(golden):
  batch = golden.batch()
  logits, out = jax.jit(golden.model.apply)(
    {"params": golden.tree("params/")},
    batch["image"],
    batch["text"][:, :-1],
    batch["mask_ar"][:, :-1],
  )
  assert_close(out["img/zimg"], golden.arrays["out/zimg"], 1e-4)
  assert_close(logits, golden.arrays["out/logits"], 1e-4)


def test_loss_per_example_and_gradients(golden):
  from pgjax.evaluation import likelihood
  from pgjax.params import of_model, tree as param_tree
  from pgjax.training import step as step_lib

  smoothing = golden.meta["label_smoothing"]
  config = golden.config(label_smoothing=smoothing, params=[(".*", "train")])
  trained = golden.flat("params/")
  gradients = functools.partial(
    step_lib.gradients,
    model=golden.model,
    options=step_lib.loss_options(golden.model, config),
    examples=len(golden.arrays["batch/text"]),
  )
  grads, loss = jax.jit(gradients)(trained, {}, golden.batch(), jax.random.key(0))
  assert_close(loss, golden.arrays[f"out/loss_ls{smoothing:g}"], 1e-4)
  theirs = golden.flat("grad/")
  assert grads.keys() == theirs.keys()
  # Relative to the largest gradient: a key's bias has none, only rounding noise, in both.
  largest = max(float(jnp.abs(g).max()) for g in theirs.values())
  for name, grad in theirs.items():
    scale = max(float(jnp.abs(grad).max()), 1e-6 * largest)
    tolerance = 1e-4 * (largest if name.endswith("key/bias") else scale)
    np.testing.assert_allclose(grads[name], grad, rtol=0, atol=tolerance, err_msg=name)

  leaves, places = (
    of_model.stored_params(golden.model, config),
    single_device(param_tree.unflatten(trained)),
  )
  nll = likelihood.jitted_nll(golden.model, leaves, one_device_mesh(), places)
  nll_B, count_B = nll(param_tree.unflatten(trained), golden.batch())
  per_example = nll_B / jnp.maximum(1, count_B)
  assert_close(per_example, golden.arrays["out/per_example_loss_ls0"], 1e-4)
  assert_close(jnp.mean(per_example), golden.arrays["out/loss_ls0"], 1e-4)


def single_device(tree):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda _: place, tree)


def test_losses_and_parameters_of_twenty_updates(golden):
  from pgjax.distributed import sharding
  from pgjax.params import of_model, tree as param_tree
  from pgjax.training import optimizer as optimizer_lib, state as train_state, step as step_lib

  config = golden.config()
  rules = of_model.rules(golden.model, config)
  trained = [name for name, rule in rules.items() if rule.kind == "train"]
  tx = optimizer_lib.make(config, config.total_steps, trained)
  mesh = one_device_mesh()
  places = sharding.shardings_of(train_state.abstract_state(golden.model, tx, config, mesh))
  loaded = jax.device_put(golden.tree("params/"), places.params)
  state = train_state.init(golden.model, tx, config, mesh, loaded=loaded)
  train_step = step_lib.jitted(golden.model, tx, config, mesh)
  losses = []
  for i in range(config.total_steps):
    state, measured = train_step(state, golden.batch(i))
    losses.append(float(measured["training_loss"]))
  np.testing.assert_allclose(losses, golden.arrays["train/losses"], rtol=1e-3)

  after, before = golden.flat("train/params_after/"), golden.flat("params/")
  ours = param_tree.flatten(state.params)
  assert ours.keys() == after.keys()
  for name, rule in rules.items():
    if rule.kind == "freeze":
      np.testing.assert_array_equal(ours[name], before[name], err_msg=name)
      np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    elif not name.endswith("key/bias"):  # Adam turns its rounding noise into whole steps.
      moved = np.abs(after[name] - before[name]).max()
      difference = np.abs(ours[name] - after[name])
      # A few elements with gradients near zero may go either way under Adam.
      assert np.mean(difference > 0.02 * moved) < 0.01, name


def decoded(golden, method):
  """(tokens, log-probabilities) of the file's prompts."""
  from pgjax.config import decode_method
  from pgjax.inference import decode

  settings, variables = golden.meta["decode"], golden.tree("params/")
  batch = golden.flat("decode/")
  batch = {
    "image": golden.batch()["image"],
    "text": batch["text"],
    "mask_ar": batch["mask_ar"],
    "mask_input": batch["mask_input"].astype(bool),
    "_mask": jnp.ones(len(batch["text"]), bool),
  }
  generate = decode.jitted(
    golden.model,
    one_device_mesh(),
    single_device(variables),
    max_decode_len=settings["max_decode_len"],
    method=decode_method.parse(method),
    eos=settings["eos_token"],
  )
  return [np.asarray(a) for a in generate(variables, batch)]


def test_greedy_tokens_up_to_the_first_eos(golden):
  tokens, logp = decoded(golden, "greedy")
  theirs = golden.arrays["decode/greedy_tokens"]
  for row in range(len(theirs)):
    ended = np.flatnonzero(theirs[row] == golden.meta["decode"]["eos_token"])
    length = ended[0] + 1 if len(ended) else len(theirs[row])
    np.testing.assert_array_equal(tokens[row, :length], theirs[row, :length])
    assert not tokens[row, length:].any()
    # The cache is bfloat16: a value on the edge between two roundings moves a logit.
    np.testing.assert_allclose(
      logp[row, :length], golden.arrays["decode/greedy_logp"][row, :length], atol=1e-3
    )


def test_beam_tokens(golden):
  tokens, _ = decoded(golden, f"beam({golden.meta['decode']['beam_size']})")
  np.testing.assert_array_equal(tokens, golden.arrays["decode/beam_tokens"])
