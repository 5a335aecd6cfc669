"""Adapters: what they add, what trains, and quantized bases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax.distributed import sharding
from pgjax.layers import lora, quantization
from pgjax.models import paligemma
from pgjax.params import (
  names as param_names,
  of_model,
  rules as param_rules,
  storage,
  tree as param_tree,
)
from pgjax.training import step as step_lib
from tests import tiny

pytestmark = pytest.mark.xdist_group("lora")  # They share what is compiled.

EVERYWHERE = "lora(rank=3, alpha=6)"
BATCH = tiny.batch()


def run_of(patterns, devices=1, llm=None, model=None, **fields):
  model = model or tiny.model(llm)
  return tiny.Run(tiny.config(params=patterns, **fields), model, tiny.mesh(devices=devices))


def filled(state, scale=0.1):
  """The state with nonzero factors b."""
  rng = np.random.default_rng(1)
  flat = param_tree.flatten(state.params)
  for name, leaf in flat.items():
    if name.startswith(param_names.LORA) and name.endswith("/b"):
      flat[name] = jax.device_put(rng.normal(0, scale, leaf.shape).astype("float32"), leaf.sharding)
  return state._replace(params=param_tree.unflatten(flat))


def logits(run, stored):
  read = sharding.for_model(of_model.stored_params(run.model, run.config), run.mesh)
  text = jnp.asarray(BATCH["text"][:, :-1])
  arguments = jnp.asarray(BATCH["image"]), text, jnp.asarray(BATCH["mask_ar"][:, :-1])
  apply = jax.jit(
    lambda stored: run.model.apply({"params": read(param_tree.flatten(stored))}, *arguments)
  )
  return np.asarray(apply(stored)[0])


def stored_of(run, values):
  """The run's stored arrays of these parameters, with fresh factors."""
  arrays = of_model.stored_params(run.model, run.config).encode(
    jax.tree.map(jnp.asarray, values), seed=0
  )
  return jax.device_put(arrays, sharding.shardings_of(run.abstract.params))


def merged(run, stored):
  """The parameters that adapters and quantized bases amount to, by numpy."""
  leaves, flat = (
    of_model.stored_params(run.model, run.config),
    jax.device_get(param_tree.flatten(stored)),
  )
  full = {}
  for name, leaf in leaves.shapes.items():
    rule = leaves.rules[name]
    parts = {part: flat[f"{name}/{part}" if part else name] for part in leaves.parts(name)}
    if scheme := storage.scheme_of(rule):
      stacked = name.startswith(param_names.STACKED)
      shape = leaf.shape[1:] if stacked else leaf.shape
      layers = [{p: a[i] for p, a in parts.items()} for i in range(len(parts["scale"]))]
      order = storage.order_of(name, shape)
      decoded = [quantization.decode_layer(p, scheme, shape, order, np) for p in layers]
      full[name] = np.stack(decoded).reshape(leaf.shape)
    else:
      full[name] = np.asarray(parts[""], np.float32)
    if rule.kind == "lora":
      a, b = (flat[f"{param_names.LORA}{name}/{f}"] for f in "ab")
      full[name] = full[name] + lora.added(param_names.matrix(name), a, b, rule.scale, np)
  return param_tree.unflatten(full)


MULTI_HEAD = dict(num_kv_heads=4)
ALL = [("img/.*", EVERYWHERE), ("llm/.*", EVERYWHERE)]


@pytest.fixture(scope="module")
def values():
  return tiny.parameters(tiny.model())


@pytest.fixture(scope="module")
def adapted(values):
  run = run_of(ALL)
  return run, run.state(stored_of(run, values))


def test_every_product_of_the_model_has_an_adapter(adapted):
  run, _ = adapted
  names = {name for name, rule in run.rules.items() if rule.kind == "lora"}
  stacked = {"w", "kernel", "linear", "gating_einsum"}
  products = {n for n in run.rules if n.split("/")[-1] in stacked} - {"img/embedding/kernel"}
  assert names == products
  assert len(names) == 5 + 6 + 1


@pytest.mark.parametrize(
  ("llm", "dtype"),
  [
    pytest.param(None, "float32", id="grouped-float32", marks=pytest.mark.long),
    pytest.param(None, "bfloat16", id="grouped-bfloat16", marks=pytest.mark.long),
    pytest.param(MULTI_HEAD, "float32", id="multi-head-float32", marks=pytest.mark.long),
    pytest.param(MULTI_HEAD, "bfloat16", id="multi-head-bfloat16"),
  ],
)
def test_at_the_start_logits_are_bit_equal_to_those_of_the_base(llm, dtype):
  model = tiny.model(llm, dtype=dtype)
  values = tiny.parameters(model)
  run = run_of(ALL, model=model)
  stored = stored_of(run, values)
  plain = param_tree.unflatten(
    {n: a for n, a in param_tree.flatten(stored).items() if not n.startswith(param_names.LORA)}
  )
  frozen = run_of([("img/head/bias", "train"), (".*", f'freeze("{dtype}")')], model=model)
  np.testing.assert_array_equal(logits(run, stored), logits(frozen, plain))


@pytest.mark.long
def test_merged_equals_unmerged_and_alpha_doubles_the_term(adapted, values):
  run, state = adapted
  stored = filled(state).params
  base = logits(run, merged(run, stored_of(run, values)) | {"lora": stored_of(run, values)["lora"]})
  ours = logits(run, stored)
  full = run_of([(".*", "train")])
  theirs = logits(full, merged(run, stored))
  assert np.abs(ours - base).max() > 1e-2 * np.abs(base).max()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())

  double = run_of([(p, "lora(rank=3, alpha=12)") for p, _ in ALL])
  once, twice = (param_tree.flatten(merged(r, stored)) for r in (run, double))
  plain = param_tree.flatten(values)
  for name, rule in run.rules.items():
    if rule.kind == "lora":
      np.testing.assert_allclose(
        twice[name] - plain[name], 2 * (once[name] - plain[name]), rtol=1e-4, atol=1e-6
      )
  theirs = logits(full, param_tree.unflatten(twice))
  np.testing.assert_allclose(
    logits(double, stored), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max()
  )


def test_rslora_divides_by_the_root_of_the_rank():
  assert param_rules.parse_spec("lora(rank=4, alpha=8)").scale == 2
  assert param_rules.parse_spec("lora(rank=4, alpha=8, rslora=True)").scale == 4


def gradients_of(run):
  """A compiled function of stored parameters and a key: (gradients, loss)."""
  leaves = of_model.stored_params(run.model, run.config)
  options = step_lib.loss_options(run.model, run.config)
  names = param_rules.trained_names(leaves.rules)

  @jax.jit
  def gradients(stored, key, batch):
    return step_lib.gradients(
      *param_tree.split(stored, names),
      batch,
      key,
      model=run.model,
      options=options,
      examples=8,
      readable=leaves.for_model,
    )

  return lambda stored, key=None: jax.device_get(
    gradients(stored, jax.random.key(0) if key is None else key, BATCH)
  )


@pytest.mark.parametrize(
  "remat",
  [
    pytest.param("nothing_saveable", marks=pytest.mark.long),
    pytest.param("least_memory", marks=pytest.mark.long),
  ],
)
def test_gradients_of_factors_are_those_of_the_merged_matrix(values, remat):
  """da = scale dW b, db = scale a dW, by the chain rule, from the full matrix's gradient."""
  model = tiny.model(remat=remat)
  run, full = run_of(ALL, model=model), run_of([(".*", "train")], model=model)
  stored = filled(run.state(stored_of(run, values))).params
  ours, loss = gradients_of(run)(stored)
  theirs, full_loss = gradients_of(full)(merged(run, stored))
  assert loss == pytest.approx(full_loss, rel=1e-5)
  flat = jax.device_get(param_tree.flatten(stored))
  for name, rule in run.rules.items():
    if rule.kind != "lora":
      continue
    factors = {f: flat[f"{param_names.LORA}{name}/{f}"] for f in "ab"}
    matrix, scale = param_names.matrix(name), rule.scale
    added = functools.partial(lora.added, matrix, scale=scale)
    (*expected,) = jax.vjp(added, *factors.values())[1](theirs[name])
    expected = dict(zip("ab", expected, strict=True))
    for f in "ab":
      got, want = ours[f"{param_names.LORA}{name}/{f}"], expected[f]
      tolerance = 1e-4 * np.abs(want).max() + 1e-9
      np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=f"{name}/{f}")


@pytest.mark.slow
def test_a_step_changes_only_factors(adapted):
  run, state = adapted
  before = jax.device_get(param_tree.flatten(state.params))
  after = run.train_step(run.state(jax.tree.map(np.asarray, state.params)), BATCH)[0]
  for name, leaf in param_tree.flatten(after.params).items():
    moves = name.startswith(param_names.LORA) and name.endswith(
      "/b"
    )  # b is 0, so a has no gradient.
    assert np.any(before[name] != leaf) == (moves and "key/" not in name) or "key/" in name, name
  moments = {leaf.shape for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim}
  assert moments == {a.shape for n, a in before.items() if n.startswith(param_names.LORA)}


@pytest.mark.parametrize(
  ("base", "double"),
  [
    pytest.param("nf4", True, marks=pytest.mark.slow),
    pytest.param("int8", False, marks=pytest.mark.long),
  ],
)
def test_qlora_is_lora_on_the_dequantized_weights(values, base, double):
  spec = f'lora(rank=3, alpha=6, base="{base}", block=16, double={double})'
  patterns = [("img/.*", spec), ("llm/.*", spec)]
  run, plain = run_of(patterns), run_of(ALL)
  stored = filled(run.state(stored_of(run, values))).params
  dequantized = merged(run_of(patterns), stored_of(run, values))
  factors = {n: a for n, a in param_tree.flatten(stored).items() if n.startswith(param_names.LORA)}
  same = param_tree.unflatten(jax.device_get({**param_tree.flatten(dequantized), **factors}))
  ours, theirs = gradients_of(run)(stored), gradients_of(plain)(same)
  assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
  for name, want in theirs[0].items():
    atol = 1e-5 * np.abs(want).max() + 1e-9
    np.testing.assert_allclose(ours[0][name], want, rtol=0, atol=atol, err_msg=name)


@pytest.mark.long
def test_on_eight_devices_qlora_trains_as_on_one(values):
  patterns = [(p, 'lora(rank=3, alpha=6, base="nf4", block=16)') for p, _ in ALL]
  one, eight = run_of(patterns), run_of(patterns, devices=8)
  codes = eight.abstract.params["llm"]["layers"]["mlp"]["linear"]["nf4"]
  assert codes.sharding.shard_shape(codes.shape)[1] == codes.shape[1] // 8
  stored = jax.device_get(filled(one.state(stored_of(one, values))).params)
  batches = [BATCH, tiny.batch(seed=1)]
  (a, log_a), (b, log_b) = one.steps(stored, batches), eight.steps(stored, batches)
  for ours, theirs in zip(log_b, log_a, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-5)
  theirs = param_tree.flatten(a.params)
  for name, leaf in param_tree.flatten(b.params).items():
    np.testing.assert_allclose(leaf, theirs[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  "remat",
  [
    pytest.param("none", marks=pytest.mark.long),
    pytest.param("least_memory", marks=pytest.mark.long),
  ],
)
def test_dropout_is_only_in_training_and_its_gradient_is_that_of_its_value(values, remat):
  """By a central difference along a random direction, with the same random numbers."""
  patterns = [(p, "lora(rank=3, alpha=6, dropout=0.4)") for p, _ in ALL]
  run = run_of(patterns, model=tiny.model(remat=remat))
  stored = filled(run.state(stored_of(run, values))).params
  key = jax.random.key(3)
  gradients, undropped = gradients_of(run), run_of(ALL, model=run.model)
  grads, loss = gradients(stored, key)
  _, again = gradients(stored, key)
  _, other = gradients(stored, jax.random.key(4))
  _, without = gradients_of(undropped)(stored, key)
  assert loss == again
  assert abs(loss - other) > 1e-4
  assert abs(loss - without) > 1e-4
  np.testing.assert_array_equal(logits(run, stored), logits(undropped, stored))

  rng, eps = np.random.default_rng(2), 1e-3
  direction = {n: rng.normal(size=g.shape).astype(np.float32) for n, g in grads.items()}
  slope = sum(np.sum(np.float64(grads[n]) * d) for n, d in direction.items())
  flat = param_tree.flatten(stored)

  def at(t):
    moved = {n: a + t * direction[n] if n in direction else a for n, a in flat.items()}
    return gradients(param_tree.unflatten(moved), key)[1]

  assert (at(eps) - at(-eps)) / (2 * eps) == pytest.approx(slope, rel=2e-2)


@pytest.mark.long
def test_a_step_with_few_trainable_parameters_has_few_flops():
  """Of a full step's FLOPs: no gradient of a frozen matrix, none at all in a frozen tower."""
  sizes = dict(width=64, depth=2, mlp_dim=256, num_heads=4, scan=False)  # Else a layer counts once.
  llm = dict(sizes, variant="t", num_kv_heads=2, head_dim=16, vocab_size=512)
  model = paligemma.Model(img=dict(sizes, patch_size=4), llm=llm, remat="none")
  adapters = "llm/layers/(attn|mlp)/.*", "lora(rank=1)"
  methods = {
    "full": [(".*", "train")],
    "attention": [("llm/layers/attn/.*", "train"), (".*", "freeze")],
    "lora": [adapters, (".*", "freeze")],
  }
  flops = {}
  for name, patterns in methods.items():
    run = run_of(patterns, model=model)
    lowered = run.train_step.lower(run.abstract, tiny.batch(text_len=24))
    flops[name] = lowered.compile().cost_analysis()["flops"]
  assert flops["attention"] < 0.72 * flops["full"]
  assert flops["lora"] < 0.72 * flops["full"]
