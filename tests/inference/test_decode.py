"""Greedy decoding over a cache, against the full forward pass repeated for every token."""

import functools
import math

import jax
import jax.extend.core
import numpy as np
import pytest
import tiny

from pgjax.checkpoints import load as load_params
from pgjax.config import decode_method
from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.inference import decode, decode_weights
from pgjax.layers import embedding
from pgjax.params import of_model, tree as param_tree
from pgjax.planning import hlo

pytestmark = pytest.mark.xdist_group("decode")  # Shares compiled programs.

ROWS, PROMPT_LEN, NEW = 64, 6, 6
SOFTCAP = 5.0


@pytest.fixture(scope="module")
def values():
  """Parameters whose logits are large enough for the soft-cap to bend them."""
  flat = param_tree.flatten(tiny.parameters(tiny.model()))
  flat["llm/final_norm/scale"] = flat["llm/final_norm/scale"] + 3
  return param_tree.unflatten(flat)


@pytest.fixture(scope="module")
def batch():
  """Prompts of 2 to 6 tokens, left-aligned; the padding has arbitrary tokens."""
  rng = np.random.default_rng(1)
  lengths = 2 + np.arange(ROWS)[:, None] % (PROMPT_LEN - 1)
  return dict(
    image=tiny.batch(rows=ROWS, text_len=PROMPT_LEN - 1)["image"],
    text=rng.integers(4, 300, size=(ROWS, PROMPT_LEN)).astype(np.int32),
    mask_ar=np.zeros((ROWS, PROMPT_LEN), np.int32),
    mask_input=np.arange(PROMPT_LEN) < lengths,
    _mask=np.ones(ROWS, bool),
  )


@pytest.fixture(scope="module")
def uncached(values, batch):
  """(tokens, log-probabilities) without an end, from the full forward pass per token."""
  model = tiny.model()
  lengths = batch["mask_input"].sum(axis=1)
  width = PROMPT_LEN + NEW
  position = np.arange(width)
  text = np.pad(np.where(batch["mask_input"], batch["text"], 0), ((0, 0), (0, NEW)))
  mask_ar = (position >= lengths[:, None]).astype(np.int32)
  logits_of = jax.jit(lambda values, *a: model.apply({"params": values}, *a)[0])
  tokens, logps = np.zeros((2, ROWS, NEW))
  rows = np.arange(ROWS)
  for i in range(NEW):
    raw = np.float64(logits_of(values, batch["image"], text, mask_ar))[rows, lengths - 1 + i]
    logits = SOFTCAP * np.tanh(raw / SOFTCAP)
    tokens[:, i] = text[rows, lengths + i] = logits.argmax(-1)
    logps[:, i] = logits.max(-1) - np.log(np.exp(logits).sum(-1))
  return tokens.astype(np.int32), logps


@pytest.fixture(scope="module")
def eos(uncached):
  """A token that ends some rows early and others never."""
  tokens, _ = uncached
  ends = {t: (tokens == t).any(axis=1) for t in np.unique(tokens[:, 1:-1])}
  chosen = max(ends, key=lambda t: min(ends[t].sum(), ROWS // 2))
  assert 0 < ends[chosen].sum() < ROWS
  return int(chosen)


@pytest.fixture(scope="module")
def expected(uncached, eos):
  """The same up to each row's eos, and zeros after it."""
  tokens, logps = uncached
  after = np.cumsum(tokens == eos, axis=1) - (tokens == eos) > 0
  assert after.any()
  return np.where(after, 0, tokens), np.where(after, 0.0, logps)


def generate(values, batch, eos, *, devices=1, spec=(("data", -1),), method="greedy"):
  model = tiny.model(llm=dict(final_logits_softcap=SOFTCAP))
  mesh, chosen = tiny.mesh(spec, devices), decode_method.parse(method, "method")
  places = sharding.shardings(tiny.FSDP, {"params": values}, mesh)["params"]
  run = decode.jitted(model, mesh, places, max_decode_len=NEW, eos=eos, method=chosen)
  tokens, logps = run(jax.device_put(values, places), batch)
  return np.asarray(tokens), np.asarray(logps)


@pytest.fixture(scope="module")
def cached(values, batch, eos):
  return generate(values, batch, eos)


def test_cached_equals_uncached_up_to_the_eos_and_zeros_follow(cached, expected):
  """Soft-capped from the first logit on."""
  np.testing.assert_array_equal(cached[0], expected[0])
  np.testing.assert_allclose(cached[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_in_the_last_layer_only_the_last_token_of_a_prompt_has_an_mlp(batch, depth):
  llm = tiny.model(llm=dict(depth=depth))
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tiny.parameters(llm))
  run = functools.partial(decode.decoded, model=llm, layout=None, max_decode_len=2)
  lowered = jax.jit(run).lower(shapes, {name: array[:2] for name, array in batch.items()})
  hidden_of_all = f"tensor<2x{tiny.PATCHES + PROMPT_LEN}x{tiny.LLM['mlp_dim']}xf32>"
  assert (hidden_of_all in lowered.as_text()) == (depth > 1)


def test_layers_and_new_tokens_share_one_computation_of_sines(batch):
  """Those of the prompt, and a table for the tokens after it: none inside a loop."""
  model = tiny.model()
  run = functools.partial(decode.decoded, model=model, layout=None, max_decode_len=2)
  program = jax.make_jaxpr(run)(tiny.parameters(model), batch)
  assert sines(program.jaxpr) == 2
  assert not any(
    sines(body)
    for loop in loops(program.jaxpr)
    for body in jax.extend.core.jaxprs_in_params(loop.params)
  )


def loops(jaxpr):
  """The scans and while loops of a program, at any depth."""
  found = [e for e in jaxpr.eqns if e.primitive.name in ("scan", "while")]
  return found + [e for inner in jax.extend.core.subjaxprs(jaxpr) for e in loops(inner)]


def sines(jaxpr):
  own = sum(e.primitive.name == "sin" for e in jaxpr.eqns)
  return own + sum(map(sines, jax.extend.core.subjaxprs(jaxpr)))


def test_a_single_row_equals_the_same_row_in_a_batch(values, batch, eos, cached):
  tokens, logps = generate(values, {name: a[3:4] for name, a in batch.items()}, eos)
  np.testing.assert_array_equal(tokens, cached[0][3:4])
  np.testing.assert_allclose(logps, cached[1][3:4], atol=1e-5)


def test_padding_does_not_change_tokens(values, batch, eos, cached):
  """The text length of a batch depends on the other prompts (data/prompt_order.py)."""
  text = {
    name: np.pad(batch[name], ((0, 0), (0, 5)), constant_values=0)
    for name in batch
    if name.startswith(("text", "mask_"))
  }
  tokens, logps = generate(values, batch | text, eos)
  np.testing.assert_array_equal(tokens, cached[0])
  np.testing.assert_allclose(logps, cached[1], atol=1e-5)


def test_eight_devices_equal_one(values, batch, eos, cached):
  tokens, logps = generate(values, batch, eos, devices=8)
  np.testing.assert_array_equal(tokens, cached[0])
  np.testing.assert_allclose(logps, cached[1], atol=1e-5)


@pytest.fixture(scope="module")
def one_beam(values, batch, eos):
  return generate(values, batch, eos, method="beam(3)")


SPLIT = {  # Under tensor=4 the two key/value heads are copied.
  "data x tensor": dict(data=2, tensor=4),
  "data x sequence": dict(data=2, sequence=4),
  "data x tensor x sequence": dict(data=2, tensor=2, sequence=2),
  "tensor x sequence": dict(tensor=2, sequence=4),  # The batch is whole on each device.
}


@pytest.mark.parametrize(
  ("method", "spec"),
  [
    pytest.param("greedy", "data x tensor", marks=pytest.mark.slow),
    *(pytest.param("greedy", spec, marks=pytest.mark.long) for spec in list(SPLIT)[1:]),
    *(pytest.param("beam(3)", spec, marks=pytest.mark.long) for spec in SPLIT),
  ],
)
def test_a_mesh_that_splits_heads_and_tokens_equals_one_device(
  request, values, batch, eos, method, spec
):
  axes = SPLIT[spec].items()
  tokens, logps = generate(values, batch, eos, devices=8, spec=axes, method=method)
  want = request.getfixturevalue("cached" if method == "greedy" else "one_beam")
  np.testing.assert_array_equal(tokens, want[0])
  np.testing.assert_allclose(logps, want[1], atol=1e-5)


@pytest.mark.long
def test_answers_are_equal_without_the_decode_copy(monkeypatch, values, batch, eos, cached):
  monkeypatch.setattr(decode_weights, "SHARE", 0)
  monkeypatch.setattr(mesh_lib, "memory_limit", lambda mesh: 1 << 40)
  for devices in (1, 8):
    tokens, logps = generate(values, batch, eos, devices=devices)
    np.testing.assert_array_equal(tokens, cached[0])
    np.testing.assert_allclose(logps, cached[1], atol=1e-5)


@pytest.mark.long
def test_sharded_weights_are_gathered_before_the_loop(values, batch):
  """Each token only looks up the sharded table: no collective moves weights."""
  mesh = tiny.mesh(devices=8)
  places = sharding.shardings(tiny.FSDP, {"params": values}, mesh)["params"]
  layout = embedding.table_layout(mesh, places["llm"]["embedder"]["input_embedding"])
  model = tiny.model().clone(constrain=mesh_lib.batch_constraint(mesh))
  fields = dict(model=model, layout=layout, max_decode_len=NEW, mesh=mesh)
  sent = {}
  for byte_budget in (math.inf, 0):
    run = functools.partial(decode.decoded, **fields, byte_budget=byte_budget)
    rows = mesh_lib.batch_sharding(mesh)
    text = jax.jit(run, in_shardings=(places, rows)).lower(values, batch).compile().as_text()
    once, twice = (
      sum(c.bytes for c in hlo.collectives(text, dict(mesh.shape), trips)) for trips in (1, 2)
    )
    sent[byte_budget] = twice - once
  assert sent[math.inf] <= 4 * ROWS * tiny.LLM["width"] * 4
  assert sent[0] > 2 * sent[math.inf]


@pytest.mark.long
def test_adapters_are_gathered_before_the_loop_too(values, batch):
  """One gather per token, of the last states for the logits, as without adapters."""
  mesh, rows = tiny.mesh(devices=8), 8
  model = tiny.model().clone(constrain=mesh_lib.batch_constraint(mesh))
  gathers = {}
  for spec in ("freeze", "lora(rank=8)"):
    config = tiny.config(params=[("llm/layers/.*", spec), (".*", "freeze")])
    leaves = of_model.stored_params(model, config)
    abstract = load_params.abstract_params(leaves, config, mesh)
    places = sharding.shardings_of(abstract)
    run = functools.partial(
      decode.decoded,
      model=model,
      layout=embedding.table_layout(mesh, places["llm"]["embedder"]["input_embedding"]),
      max_decode_len=NEW,
      mesh=mesh,
      readable=sharding.for_model(leaves, mesh),
    )
    few = {name: a[:rows] for name, a in batch.items()}
    places = (places, mesh_lib.batch_sharding(mesh))
    text = jax.jit(run, in_shardings=places).lower(abstract, few).compile().as_text()
    once, twice = (
      sum(c.count for c in hlo.collectives(text, dict(mesh.shape), trips) if c.op == "all-gather")
      for trips in (1, 2)
    )
    gathers[spec] = twice - once
  assert gathers["lora(rank=8)"] == gathers["freeze"] <= 1


def test_decoding_stops_when_the_last_non_padding_row_has_ended(
  monkeypatch, values, batch, eos, expected
):
  """Counts how often a token is read back: padding rows do not prolong the loop."""
  read = []
  embed = decode.embedding.embed

  def count(table_VD, tokens_BT, layout):
    if tokens_BT.shape[1] == 1:
      jax.debug.callback(lambda _: read.append(1), tokens_BT[0, 0])
    return embed(table_VD, tokens_BT, layout)

  monkeypatch.setattr(decode.embedding, "embed", count)
  model = tiny.model(llm=dict(final_logits_softcap=SOFTCAP))
  decoded = functools.partial(decode.decoded, model=model, layout=None, max_decode_len=NEW, eos=eos)
  run = jax.jit(decoded)
  tokens, _ = expected
  ended = (tokens == eos).any(axis=1)
  for real in (ended, np.ones(ROWS, bool)):
    read.clear()
    ours, _ = jax.block_until_ready(run(values, {**batch, "_mask": real}))
    jax.effects_barrier()
    np.testing.assert_array_equal(ours, np.where(real[:, None], tokens, 0))
    lengths = np.where((tokens == eos).any(axis=1), (tokens == eos).argmax(axis=1) + 1, NEW)
    assert len(read) == lengths[real].max() - 1
  assert lengths[ended].max() < NEW
