"""One update: the same numbers on every mesh, in microbatches, under every remat policy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.evaluation import likelihood
from pgjax.layers import remat
from pgjax.params import of_model, rules as param_rules, tree as param_tree
from pgjax.training import step as step_lib

pytestmark = pytest.mark.xdist_group("step")  # They share what is compiled.

BATCHES = [tiny.batch(seed=i) for i in range(5)]
MESHES = {
  "fsdp": ([("data", -1)], tiny.FSDP, 8),
  "fsdp in two replicas": ([("replica", 2), ("data", -1)], tiny.FSDP, 4),
  "replicated": ([("data", -1)], [(".*", "replicate")], 1),
}


@pytest.fixture(scope="module")
def values():
  return tiny.parameters(tiny.model())


@pytest.fixture(scope="module")
def one():
  """Adam on everything, on one device."""
  return tiny.Run(tiny.config(), tiny.model(), tiny.mesh())


@pytest.fixture(scope="module")
def one_log(one, values):
  return one.steps(values, BATCHES)[1]


def losses(log):
  return [measured["training_loss"] for measured in log]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_of_eight_devices_equal_those_of_one(mesh, values, one_log):
  spec, strategy, parts = MESHES[mesh]
  run = tiny.Run(tiny.config(sharding_strategy=strategy), tiny.model(), tiny.mesh(spec, 8))
  state, log = run.steps(values, BATCHES)
  for name in log[0]:
    ours, theirs = ([measured[name] for measured in a] for a in (log, one_log))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)
  leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert len(leaves) > 3 * 30  # Parameters and Adam's two moments.
  for leaf in leaves:
    assert leaf.addressable_shards[0].data.size * parts == leaf.size


def test_measured_values(values, one, one_log):
  """Against numpy: lengths from the masks, norms from the parameters before and after."""
  lengths = BATCHES[0]["mask_loss"][:, 1:].sum(axis=1)
  assert lengths.min() == 0
  assert one_log[0]["avg_sup_seqlen"] == pytest.approx(lengths.mean())
  assert one_log[0]["max_sup_seqlen"] == lengths.max()
  state, (measured,) = one.steps(values, BATCHES[:1])
  assert int(state.step) == 1
  before, after = param_tree.flatten(values), param_tree.flatten(state.params)
  norm = lambda leaves: np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in leaves))  # noqa: E731
  moved = norm(np.float64(after[n]) - before[n] for n in before)
  assert measured["l2_params"] == pytest.approx(norm(after.values()), rel=1e-5)
  assert measured["l2_updates"] == pytest.approx(moved, rel=1e-3)
  assert measured["l2_grads"] > 1.1 * one.config.grad_clip_norm  # Before clipping.


def assert_same_update(run, whole, values, tolerance):
  """Each leaf's change within `tolerance` of its largest, beside the rounding of the parameter."""
  state, log = run.steps(values, BATCHES[:1])
  whole_state, whole_log = whole.steps(values, BATCHES[:1])
  assert log[0] == pytest.approx(whole_log[0], rel=1e-5)
  ours, theirs = param_tree.flatten(state.params), param_tree.flatten(whole_state.params)
  for name, before in param_tree.flatten(values).items():
    moved = np.abs(theirs[name] - before).max()
    assert (moved > 1e-5) != name.endswith("key/bias")  # The softmax does not see it.
    atol = tolerance * moved + 3e-8
    np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.long
def test_microbatches_give_the_sgd_update_of_the_whole_batch_on_any_mesh(values):
  chosen = dict(optax_name="big_vision.sgd", optax={}, lr=1.0)
  whole = tiny.Run(tiny.config(**chosen), tiny.model(), tiny.mesh())
  four = tiny.config(**chosen, microbatches=4)
  assert_same_update(tiny.Run(four, tiny.model(), tiny.mesh(devices=2)), whole, values, 1e-5)


@pytest.mark.slow
def test_microbatches_give_the_adam_update_of_the_whole_batch(values, one):
  """Adam magnifies what rounding does to small gradients."""
  four = tiny.Run(tiny.config(microbatches=4), tiny.model(), tiny.mesh())
  assert_same_update(four, one, values, 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_summed_in_the_dtype_of_accumulation(dtype):
  """Each sum is exact in float32 and rounded once; the loss is not rounded."""
  rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)

  def gradients_of(part, key):
    return {"w": jnp.sum(part, axis=0)}, jnp.sum(part)

  accumulate = functools.partial(step_lib.accumulated, gradients_of, microbatches=4, dtype=dtype)
  grads, loss = accumulate(rows, jax.random.key(0))
  want = jnp.zeros(3, dtype)
  for part in np.swapaxes(rows.reshape(3, 4, 3), 0, 1):
    want = (want.astype(jnp.float32) + part.sum(axis=0)).astype(dtype)
  assert grads["w"].dtype == jnp.float32
  np.testing.assert_allclose(grads["w"], want.astype(jnp.float32), rtol=1e-6)
  np.testing.assert_allclose(loss, rows.sum(), rtol=1e-5)
  carried = jax.make_jaxpr(accumulate)(rows, jax.random.key(0))
  (scan,) = [e for e in carried.eqns if e.primitive.name == "scan"]
  assert {v.aval.dtype.name for v in scan.outvars if v.aval.shape} == {dtype}


@pytest.fixture(scope="module")
def frozen():
  """Only the text tower's attention trains, with dropout; the rest is stored in bfloat16."""
  patterns = [("llm/layers/attn/.*", "train"), (".*", 'freeze("bfloat16")')]
  return tiny.Run(tiny.config(params=patterns), tiny.model(llm=dict(dropout=0.1)), tiny.mesh())


ATTENTION = {f"llm/layers/attn/{name}/w" for name in ("q_einsum", "kv_einsum", "attn_vec_einsum")}


def test_frozen_leaves_have_no_gradient_and_no_optimizer_state(frozen):
  trained, rest = param_tree.split(frozen.abstract.params, param_rules.trained_names(frozen.rules))
  assert trained.keys() == ATTENTION
  options = step_lib.loss_options(frozen.model, frozen.config)
  gradients_of = functools.partial(
    step_lib.gradients,
    model=frozen.model,
    readable=of_model.stored_params(frozen.model, frozen.config).for_model,
    options=options,
    examples=len(BATCHES[0]["text"]),
  )
  grads, _ = jax.eval_shape(gradients_of, trained, rest, BATCHES[0], jax.random.key(0))
  assert grads.keys() == ATTENTION
  opt_shapes = [leaf.shape for leaf in jax.tree.leaves(frozen.abstract.opt_state) if leaf.shape]
  assert sorted(opt_shapes) == sorted(2 * [leaf.shape for leaf in trained.values()])


def test_frozen_leaves_stay_as_they_were_stored(frozen, values):
  state, _ = frozen.steps(values, BATCHES[:3])
  for name, before in param_tree.flatten(values).items():
    after = param_tree.flatten(state.params)[name]
    if name in ATTENTION:
      assert after.dtype == jnp.float32
      assert np.all(after != before)
    else:
      assert after.dtype == jnp.bfloat16
      np.testing.assert_array_equal(after, before.astype(jnp.bfloat16), err_msg=name)


def test_dropout_depends_on_the_step_and_on_nothing_else(frozen, values):
  def first_step(number):
    state = frozen.state(values)._replace(step=jnp.asarray(number, jnp.int32))
    after, measured = frozen.train_step(state, BATCHES[0])
    return jax.device_get((after.params, measured))

  once, again = first_step(3), first_step(3)
  jax.tree.map(np.testing.assert_array_equal, once, again)
  other = first_step(4)
  assert abs(other[1]["training_loss"] / once[1]["training_loss"] - 1) > 1e-4


def test_the_old_state_is_given_to_the_new_one(one, values):
  """Else two of them would have to fit in memory."""
  state = one.state(values)
  one.train_step(state, BATCHES[0])
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_nan_in_an_image_shows_in_what_is_measured(one, values):
  image = BATCHES[0]["image"].copy()
  image[-1, 3, 3] = np.nan
  _, (measured,) = one.steps(values, [{**BATCHES[0], "image": image}])
  assert math.isnan(measured["training_loss"])
  assert math.isnan(measured["l2_grads"])


@pytest.fixture(scope="module")
def compiled_gradients(values):
  """compiled(remat, dtype) -> (loss, flat gradients, bytes of temporary arrays)."""

  @functools.cache
  def compiled(policy, dtype="float32"):
    model = tiny.model(remat=policy, dtype=dtype)
    options = step_lib.loss_options(model, tiny.config())
    gradients = functools.partial(step_lib.gradients, model=model, options=options, examples=8)
    arguments = param_tree.flatten(values), {}, BATCHES[0], jax.random.key(0)
    run = jax.jit(gradients).lower(*arguments).compile()
    grads, loss = run(*arguments)
    return loss, grads, run.memory_analysis().temp_size_in_bytes

  return compiled


@pytest.mark.long
@pytest.mark.parametrize("policy", sorted(set(remat.POLICIES) - {"none"}))
def test_every_remat_policy_gives_the_same_gradients(policy, compiled_gradients):
  loss, grads, temporary_bytes = compiled_gradients(policy)
  expected_loss, expected, most_bytes = compiled_gradients("none")
  assert temporary_bytes < most_bytes
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  largest = max(np.abs(a).max() for a in expected.values())
  for name, a in expected.items():
    atol = 1e-5 * (largest if name.endswith("key/bias") else np.abs(a).max())
    np.testing.assert_allclose(grads[name], a, rtol=0, atol=atol, err_msg=name)


@pytest.mark.long
def test_the_default_in_bfloat16_keeps_less_and_gives_the_same(compiled_gradients):
  loss, grads, temporary_bytes = compiled_gradients("mlp_out_saveable_chunked", "bfloat16")
  expected_loss, expected, most_bytes = compiled_gradients("none", "bfloat16")
  assert temporary_bytes < most_bytes
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-3)
  for name, a in expected.items():
    a = np.float32(a)
    error = np.linalg.norm(np.float32(grads[name]) - a) / np.linalg.norm(a)
    assert error < 0.02 or name.endswith("key/bias"), name


@pytest.mark.long
def test_casting_weights_before_the_layers_changes_no_number(values):
  """What a step does with leaves that a mesh would copy to gather them."""
  model = tiny.model(dtype="bfloat16")
  options = step_lib.loss_options(model, tiny.config())
  gradients = functools.partial(step_lib.gradients, model=model, options=options, examples=8)
  flat = param_tree.flatten(values)
  run = jax.jit(gradients, static_argnames="cast_first")
  early, late = (
    run(flat, {}, BATCHES[0], jax.random.key(0), cast_first=names)
    for names in (frozenset(flat), frozenset())
  )
  assert early[1] == late[1]
  for name, gradient in late[0].items():
    np.testing.assert_array_equal(early[0][name], gradient, err_msg=name)


def test_leaves_that_a_mesh_would_copy_are_cast_first():
  config = tiny.config(sharding_strategy=tiny.FSDP, dtype="bfloat16")
  one, eight = (
    tiny.Run(config, tiny.model(dtype="bfloat16"), tiny.mesh(devices=n)) for n in (1, 8)
  )
  cast = lambda run: step_lib._copied_to_gather(sharding.shardings_of(run.abstract.params))  # noqa: E731, SLF001
  assert not cast(one)
  assert "llm/layers/mlp/gating_einsum" in cast(eight)
  assert "llm/layers/mlp/linear" not in cast(eight)  # Sharded on the first axis of a layer.


@pytest.mark.long
def test_bfloat16_compute_is_close_to_float32(values, one_log):
  run = tiny.Run(tiny.config(), tiny.model(dtype="bfloat16"), tiny.mesh())
  state, log = run.steps(values, BATCHES)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  np.testing.assert_allclose(losses(log), losses(one_log), rtol=0.02)
  assert losses(log) != losses(one_log)
  assert log[0]["l2_grads"] == pytest.approx(one_log[0]["l2_grads"], rel=0.05)


def test_likelihoods_are_those_of_the_whole_logits(values):
  """Without label smoothing and dropout, summed over an example's tokens with a loss."""
  model = tiny.model(llm=dict(dropout=0.5, final_logits_softcap=3.0))
  batch = BATCHES[0]
  places = jax.tree.map(lambda _: mesh_lib.replicated(tiny.mesh()), values)
  leaves = of_model.stored_params(model, tiny.config())
  nll, count = likelihood.jitted_nll(model, leaves, tiny.mesh(), places)(values, batch)

  @jax.jit
  def naive(values, batch):
    text, mask_ar = batch["text"], batch["mask_ar"]
    logits, _ = model.apply({"params": values}, batch["image"], text[:, :-1], mask_ar[:, :-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), text[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(chosen * batch["mask_loss"][:, 1:], axis=1)

  np.testing.assert_array_equal(count, batch["mask_loss"][:, 1:].sum(axis=1))
  np.testing.assert_allclose(nll, naive(values, jax.tree.map(jnp.asarray, batch)), rtol=1e-5)


def sizes(jaxpr):
  """Of every array computed in a jaxpr and the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield from (getattr(out.aval, "size", 0) for out in equation.outvars)
    for value in jax.tree.leaves(tuple(equation.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from sizes(inner)


def test_no_array_of_a_step_holds_a_logit_for_every_token():
  V, B, T = 4096, 16, 16
  model = tiny.model(llm=dict(vocab_size=V))
  run = tiny.Run(tiny.config(text_len=T), model, tiny.mesh())
  batch = tiny.batch(rows=B, text_len=T)
  assert max(sizes(run.train_step.trace(run.abstract, batch).jaxpr.jaxpr)) < B * T * V
  shapes = run.abstract.params, batch["image"], batch["text"][:, 1:], batch["mask_ar"][:, 1:]
  whole = jax.make_jaxpr(lambda p, *a: model.apply({"params": p}, *a))(*shapes)
  assert max(sizes(whole.jaxpr)) == B * T * V  # So such an array would be seen.


def test_a_device_of_eight_holds_an_eighth_of_the_3b():
  config = tiny.config(res=224, text_len=128, sharding_strategy=[(".*", 'fsdp(axis="data")')])
  model = tiny.paligemma.Model(img=dict(variant="So400m/14"), llm=dict(variant="gemma2_2b"))
  run = tiny.Run(config, model, tiny.mesh(devices=8))
  total = stored = 0
  for leaf in jax.tree.leaves(run.abstract):
    total += leaf.size * leaf.dtype.itemsize
    stored += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  assert total == 4 * (3 * 3_032_094_960 + 3)  # Parameters, two moments; three step counters.
  assert stored <= total / 8 * 1.02
