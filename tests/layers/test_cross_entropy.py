"""Loss, embeddings and their gradients at the vocabulary, against the formulas in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from pgjax.distributed import mesh as mesh_lib
from pgjax.layers import cross_entropy, embedding

B, T, D, V = 8, 3, 8, 32


@pytest.fixture(scope="module")
def inputs():
  """h, table, targets, weights (0 for half of the tokens, and for whole rows), tokens, dx."""
  rng = np.random.default_rng(0)
  weights = rng.uniform(0.2, 1.0, size=(B, T)) * (rng.random((B, T)) < 0.7)
  weights[2:4] = 0
  assert 8 <= (weights > 0).sum() <= 16
  return dict(
    h=rng.normal(size=(B, T, D)).astype(np.float32),
    table=rng.normal(size=(V, D)).astype(np.float32),
    targets=rng.integers(0, V, size=(B, T)),
    weights=weights.astype(np.float32),
    tokens=np.concatenate([np.full((B, 1), 5), rng.integers(0, V, size=(B, T - 1))], axis=1),
    dx=rng.normal(size=(B, T, D)).astype(np.float32),
  )


def formulas(h, table, targets, weights, tokens, dx, *, smoothing=0.0, softcap=0.0):
  """What `everything` should return."""
  h, table, dx = (np.asarray(a, np.float64) for a in (h, table, dx))
  logits = h @ table.T
  slope = 1.0
  if softcap:
    tanh = np.tanh(logits / softcap)
    logits, slope = softcap * tanh, 1 - tanh**2
  wanted = np.full(logits.shape, smoothing / (V - 1))
  np.put_along_axis(wanted, targets[..., None], 1 - smoothing, axis=-1)
  log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -(wanted * log_softmax).sum(-1) * (weights > 0)
  dlogits = (np.exp(log_softmax) - wanted) * slope * weights[..., None]
  dembed = np.zeros_like(table)
  np.add.at(dembed, tokens, dx * D**0.5)
  return dict(
    total=(nll * weights).sum(),
    nll=nll,
    dh=dlogits @ table,
    dtable=np.einsum("BTV,BTD->VD", dlogits, h),
    embedded=table[tokens] * D**0.5,
    dembed=1.0 + dembed,  # Added to a table of ones.
  )


@functools.partial(jax.jit, static_argnames="options")
def everything(h, table, targets, weights, tokens, dx, *, options):
  def loss(h, table):
    return cross_entropy.weighted_nll(h, table, targets, weights, options)

  (total, nll), (dh, dtable) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h, table)
  return dict(
    total=total,
    nll=nll,
    dh=dh,
    dtable=dtable,
    embedded=embedding.embed(table, tokens, options.layout),
    dembed=embedding.add_embed_gradient(jnp.ones_like(table), tokens, dx, options.layout),
  )


def assert_all_close(ours, theirs, tolerance=2e-6):
  assert ours.keys() == theirs.keys()
  for name, a in theirs.items():
    atol = tolerance * np.abs(a).max()
    np.testing.assert_allclose(ours[name], a, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
  ("smoothing", "softcap", "chunk"),
  [(0.0, 0.0, None), (0.2, 0.0, 24), (0.0, 3.0, 4), (0.2, 3.0, 5), (0.1, 0.0, 1), (0.0, 0.0, 100)],
)
def test_loss_and_gradients_equal_the_formulas(inputs, smoothing, softcap, chunk):
  options = cross_entropy.LossOptions(label_smoothing=smoothing, softcap=softcap, chunk=chunk)
  ours = everything(**inputs, options=options)
  assert_all_close(ours, formulas(**inputs, smoothing=smoothing, softcap=softcap))
  np.testing.assert_array_equal(np.asarray(ours["nll"]) == 0, inputs["weights"] == 0)
  np.testing.assert_array_equal(np.any(ours["dh"], axis=-1), inputs["weights"] > 0)


def test_the_loss_scales_its_gradients(inputs):
  """A loss that is multiplied, as one part of several, multiplies its gradients."""
  options = cross_entropy.LossOptions(chunk=8)
  targets, weights = jnp.asarray(inputs["targets"]), jnp.asarray(inputs["weights"])

  @jax.jit
  def gradients(h, table):
    def loss(h, table):
      total, _ = cross_entropy.weighted_nll(h, table, targets, weights, options)
      return -3.0 * total + 2.0 * jnp.sum(h * h)

    return jax.grad(loss, argnums=(0, 1))(h, table)

  dh, dtable = gradients(inputs["h"], inputs["table"])
  expected = formulas(**inputs)
  np.testing.assert_allclose(dh, -3 * expected["dh"] + 4 * inputs["h"], atol=2e-5)
  np.testing.assert_allclose(dtable, -3 * expected["dtable"], atol=2e-5)


def test_a_frozen_table_has_no_gradient_and_changes_no_other(inputs):
  ours = everything(**inputs, options=cross_entropy.LossOptions(chunk=4, train_table=False))
  expected = formulas(**inputs)
  expected["dtable"] *= 0
  assert_all_close(ours, expected)


def test_tokens_without_weight_are_not_computed(inputs):
  """NaN in their states would spread to the gradient of the table if they were."""
  options = cross_entropy.LossOptions(chunk=5)
  used = inputs["weights"] > 0
  in_last_chunk = -used.sum() % 5  # Unused tokens fill the last chunk, first come first.
  assert in_last_chunk > 0
  rows, columns = np.nonzero(~used)
  poisoned = inputs["h"].copy()
  poisoned[rows[in_last_chunk:], columns[in_last_chunk:]] = np.nan
  ours = everything(**{**inputs, "h": poisoned}, options=options)
  assert_all_close(ours, formulas(**inputs))

  nothing = {**inputs, "weights": np.zeros((B, T), np.float32), "h": np.full_like(poisoned, np.nan)}
  ours = everything(**nothing, options=options)
  assert not any(np.any(ours[name]) for name in ("total", "nll", "dh", "dtable"))


@pytest.mark.parametrize(
  ("mesh_spec", "rows", "vocab_axes"),
  [
    ([("data", -1)], P("data"), ("data",)),
    ([("replica", 2), ("data", -1)], P("data"), ("data",)),
    ([("replica", 2), ("data", -1)], P(("replica", "data")), ("replica", "data")),
    ([("data", -1)], P(), ()),
    ([("data", -1)], P(None, "data"), ()),
  ],
  ids=["fsdp", "fsdp in replicas", "fsdp over both axes", "replicated", "sharded columns"],
)
def test_eight_devices_give_the_same_as_one(inputs, mesh_spec, rows, vocab_axes):
  mesh = mesh_lib.make_mesh(mesh_spec, jax.devices())
  place = NamedSharding(mesh, rows)
  layout = embedding.table_layout(mesh, place)
  assert layout.vocab_axes == vocab_axes
  # One example a device; two of them have no token with a weight.
  placed = jax.device_put(inputs, mesh_lib.batch_sharding(mesh))
  placed["table"] = jax.device_put(inputs["table"], place)
  options = cross_entropy.LossOptions(label_smoothing=0.2, softcap=3.0, chunk=2, layout=layout)
  ours = everything(**placed, options=options)
  assert_all_close(ours, formulas(**inputs, smoothing=0.2, softcap=3.0))


@pytest.mark.parametrize(
  ("mesh_spec", "rows", "splits_tokens"),
  [
    ([("data", 2), ("tensor", 4)], P(("tensor", "data")), False),
    pytest.param(
      *([("data", 2), ("sequence", 4)], P(("data", "sequence")), False), marks=pytest.mark.long
    ),
    pytest.param(*([("data", 2), ("sequence", 4)], P("data"), True), marks=pytest.mark.long),
    ([("replica", 2), ("tensor", 2), ("sequence", 2)], P("tensor"), True),
  ],
  ids=["tensor", "sequence with rows", "sequence", "all but data"],
)
def test_tokens_and_rows_split_over_other_axes_give_the_same(
  inputs, mesh_spec, rows, splits_tokens
):
  four = {  # The third token twice, so that four devices split T; its copy has no weight.
    name: a if name == "table" else np.concatenate([a, a[:, -1:]], axis=1)
    for name, a in inputs.items()
  }
  four["weights"][:, -1] = 0
  mesh = mesh_lib.make_mesh(mesh_spec, jax.devices())
  place = NamedSharding(mesh, rows)
  layout = embedding.table_layout(mesh, place)
  assert bool(layout.of(jnp.asarray(four["tokens"])).sequence_axes) == splits_tokens
  placed = jax.device_put(four, mesh_lib.batch_sharding(mesh))
  placed["table"] = jax.device_put(inputs["table"], place)
  options = cross_entropy.LossOptions(label_smoothing=0.2, softcap=3.0, chunk=2, layout=layout)
  ours = everything(**placed, options=options)
  assert_all_close(ours, formulas(**four, smoothing=0.2, softcap=3.0))


def test_one_device_needs_no_layout():
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  assert embedding.table_layout(mesh, NamedSharding(mesh, P("data"))) is None


def test_bfloat16_states_give_nearly_the_float32_loss(inputs):
  """Sums over the vocabulary, and over chunks of the table's gradient, are float32."""
  low = {**inputs, "h": inputs["h"].astype(jnp.bfloat16)}
  ours = everything(**low, options=cross_entropy.LossOptions(chunk=1))
  assert ours["dtable"].dtype == jnp.float32
  assert ours["dh"].dtype == jnp.bfloat16
  theirs = formulas(**{**low, "table": inputs["table"].astype(jnp.bfloat16)})
  for name, tolerance in dict(total=1e-6, nll=1e-6, dh=1e-2, dtable=4e-3).items():
    atol = tolerance * np.abs(theirs[name]).max()
    np.testing.assert_allclose(np.float32(ours[name]), theirs[name], rtol=0, atol=atol)


def test_a_narrow_gradient_of_the_table_is_rounded_once():
  """Also where a token occurs a thousand times, whose sum in bfloat16 would stop to grow."""
  tokens = jnp.asarray(np.where(np.arange(1000) < 9, 1, [[3], [7]]))
  rng = np.random.default_rng(0)
  dx = jnp.asarray(rng.random((2, 1000, 8)), jnp.bfloat16)
  dtable = jnp.asarray(rng.normal(size=(10, 8)), jnp.bfloat16)
  ours = embedding.add_narrow_embed_gradient(dtable, tokens, dx)
  right = embedding.add_embed_gradient(dtable.astype(jnp.float32), tokens, dx)
  np.testing.assert_allclose(ours.astype(jnp.float32), right, rtol=1 / 256)
  np.testing.assert_array_equal(ours[0], dtable[0])
