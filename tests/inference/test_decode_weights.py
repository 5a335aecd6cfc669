"""The copy of the weights that decoding reads: one product for several matrices, and kernels."""

import functools
import re

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pgjax.config import decode_method
from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.inference import decode, decode_weights
from pgjax.kernels import choice, decode_attention, quantized_product
from pgjax.layers import lora, placement
from pgjax.params import of_model, tree as param_tree
from pgjax.planning import hlo_text

pytestmark = pytest.mark.xdist_group("decode_weights")

ROWS, NEW, DEPTH = 8, 5, 1
FREEZE = (".*", "freeze")
STORED = {
  "plain": [FREEZE],
  "lora": [("llm/layers/(attn|mlp)/.*", "lora(rank=5)"), FREEZE],
  "int8": [("llm/layers/(attn|mlp)/.*", 'freeze("int8", block=16)'), FREEZE],
  "nf4": [("llm/layers/(attn|mlp)/.*", 'freeze("nf4", block=16, double=True)'), FREEZE],
  "nf4 and lora": [("llm/layers/(attn|mlp)/.*", 'lora(rank=4, base="nf4", block=16)'), FREEZE],
  "int8 MLP": [("llm/layers/mlp/.*", 'freeze("int8", block=16)'), FREEZE],
  "lora on queries": [("llm/layers/attn/q_einsum/.*", "lora(rank=4)"), FREEZE],
}
HEADS = dict(GQA={}, MQA=dict(num_kv_heads=1), MHA=dict(num_kv_heads=4))


def program(stored, heads, mesh=None, method="greedy", **fields):
  """(decode.decoded with its static arguments, stored arrays, a batch)."""
  mesh = mesh or tiny.mesh()
  model = tiny.model(llm=HEADS[heads] | dict(depth=DEPTH, final_logits_softcap=5.0), **fields)
  leaves = of_model.stored_params(model, tiny.config(params=STORED[stored], dtype=model.dtype))
  rng = np.random.default_rng(0)
  flat = param_tree.flatten(tiny.parameters(model))
  for name in flat:  # Answers that do not repeat the prompt's last token.
    if name.startswith("llm/layers/") and not name.endswith("scale"):
      flat[name] = flat[name] * 4
  values = jax.tree.map(jnp.asarray, param_tree.unflatten(flat))
  flat = param_tree.flatten(leaves.encode(values, 0))
  for name, leaf in flat.items():
    if name.startswith("lora/") and name.endswith("/b"):  # Zero at first.
      flat[name] = jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
  batch = tiny.batch(rows=ROWS)
  text = batch["text"][:, :-1]
  mask_input = np.arange(text.shape[1]) < 2 + np.arange(ROWS)[:, None] % 6
  batch = dict(image=batch["image"], text=text, mask_ar=0 * text, mask_input=mask_input)
  run = functools.partial(
    decode.decoded,
    model=model.clone(constrain=mesh_lib.batch_constraint(mesh)),
    layout=None,
    max_decode_len=NEW,
    eos=-1,
    readable=sharding.for_model(leaves, mesh),
    method=decode_method.parse(method, "method"),
    mesh=mesh,
  )
  return run, param_tree.unflatten(flat), batch


def assert_equal_without_copy(*args, atol=1e-5, **fields):
  run, params, batch = program(*args, **fields)
  compiled = jax.jit(run).lower(params, batch).compile()
  tokens, logp = compiled(params, batch)
  want = jax.jit(functools.partial(run, byte_budget=0, kernels=False))(params, batch)
  np.testing.assert_array_equal(tokens, want.tokens)
  np.testing.assert_allclose(logp, want.logp, atol=atol)
  assert len(np.unique(tokens)) > ROWS
  return compiled.as_text()


@pytest.mark.parametrize("stored", [
  pytest.param(name, marks=() if name == "lora" else pytest.mark.long) for name in STORED
])  # fmt: skip
@pytest.mark.parametrize("heads", [
  pytest.param(name, marks=() if name == "GQA" else pytest.mark.long) for name in HEADS
])  # fmt: skip
@pytest.mark.slow
def test_answers_are_those_without_the_copy(stored, heads):
  if heads == "MHA" and stored == "lora on queries":
    return  # It has one matrix for all three.
  method = "beam(3)" if heads == "MQA" else "greedy"
  text = assert_equal_without_copy(stored, heads, method=method)
  assert_no_cache_is_copied(text, HEADS[heads].get("num_kv_heads", tiny.LLM["num_kv_heads"]))


def assert_no_cache_is_copied(text, kv_heads):
  """In the loop over tokens, which updates the caches in place."""
  program, entry = hlo_text.parse(text)
  loops = [i for i in program[entry] if i.op == "while" and "known_trip" not in i.attributes]
  (body,) = (program[hlo_text.called(loop, "body")[0]] for loop in loops)
  cache = re.compile(rf"f32\[{ROWS},{kv_heads},\d+,\d+\]")
  ops = [i.op for i in body if cache.match(i.type)]
  assert any(op in ("fusion", "call", "dynamic-update-slice") for op in ops)
  assert not any(op.startswith("copy") for op in ops)


@pytest.fixture
def interpreted(monkeypatch):
  """The kernels run on this CPU; the list gets the name of each that a program has."""
  used = []

  def interpret(module, name):
    kernel = getattr(module, name)

    def run(*args, **how):
      used.append(name)
      return kernel(*args, **how, interpret=True)

    monkeypatch.setattr(module, name, run)

  interpret(decode_attention, "attend")
  interpret(quantized_product, "product")
  monkeypatch.setattr(choice, "runs_triton", lambda dtype, device: True)
  monkeypatch.setattr(choice, "MIN_PROGRAMS", 1)
  return used


@pytest.mark.parametrize(
  ("stored", "heads", "method", "devices"),
  [
    ("nf4 and lora", "GQA", "greedy", 1),
    pytest.param("int8", "MQA", "beam(3)", 1, marks=pytest.mark.long),
    pytest.param("nf4", "MHA", "greedy", 1, marks=pytest.mark.long),
    pytest.param("int8 MLP", "GQA", "beam(2)", 4, marks=pytest.mark.long),
  ],
)
@pytest.mark.slow
def test_answers_with_kernels_are_those_without(interpreted, stored, heads, method, devices):
  mesh = tiny.mesh(devices=devices)
  assert_equal_without_copy(stored, heads, mesh=mesh, method=method)
  assert (
    interpreted.count("attend") == DEPTH + 1
  )  # And the last token of the prompt, in the last layer.
  matrices = 2 if stored == "int8 MLP" else 4
  assert interpreted.count("product") == matrices * DEPTH


@pytest.mark.parametrize("stored", ["plain", "lora"])
def test_a_token_takes_six_products_a_layer_and_one_for_the_logits(stored):
  """Queries, keys and values; gate and up. Adapters add two small ones to each of the four."""
  run, params, batch = program(stored, "GQA")
  jaxpr = jax.make_jaxpr(run)(params, batch).jaxpr
  loops = [e for e in equations(jaxpr) if e.primitive.name == "while"]
  (body,) = [e.params["body_jaxpr"].jaxpr for e in loops if "dot_general" in names(e)]
  products = [e for e in equations(body) if e.primitive.name == "dot_general"]
  ranks = {5, 2 * 5, 3 * 5}  # No other axis has such a size.
  large = [e for e in products if not any(ranks & {*v.aval.shape} for v in e.invars)]
  assert len(large) == 6 * DEPTH + 1
  assert len(products) - len(large) == (0 if stored == "plain" else 2 * 4 * DEPTH)


@pytest.mark.parametrize("adapted", ["q", "kv", "q kv", "qkv", ""])
def test_joined_adapters_add_to_each_head_what_its_own_adds(adapted):
  K, G, H, D, R = 2, 3, 4, 8, 5
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731

  def leaf(name, parts, heads):
    base = normal(*parts, heads, D, H)
    if name not in adapted.split():
      return base
    return lora.Adapted(base, normal(*parts, D, R), normal(*parts, R, heads, H), 2.0, 0.0)

  if adapted == "qkv":
    leaves = dict(qkv=leaf("qkv", (3,), K))
  else:
    leaves = dict(q=leaf("q", (), K * G), kv=leaf("kv", (2,), K))
  layer = dict(attn={f"{name}_einsum": dict(w=w) for name, w in leaves.items()})
  fused = decode_weights.fuse(layer, "float32", placement.NO_MESH, kernels=False)["attn"]["qkv"]
  x_BTD = normal(2, 1, D)
  y_BTKXH = lora.product("BTD,KXDH->BTKXH", x_BTD, fused)

  def heads_of(w):
    if isinstance(w, lora.Adapted):
      w = w.base + w.scale * jnp.einsum("...DR,...RNH->...NDH", w.a, w.b)
    return jnp.einsum("BTD,...NDH->...BTNH", x_BTD, w)

  *q, kv = (heads_of(w) for w in leaves.values())
  of_group = jnp.moveaxis(q[0].reshape(2, 1, K, G, H), 3, 0) if q else ()
  want = [*of_group, *kv]
  np.testing.assert_allclose(y_BTKXH, jnp.stack(want, axis=3), rtol=1e-5, atol=1e-5)


def equations(jaxpr):
  """All of a program and of those in it."""
  for e in jaxpr.eqns:
    yield e
    for inner in jax.extend.core.jaxprs_in_params(e.params):
      yield from equations(inner)


def names(equation):
  inner = jax.extend.core.jaxprs_in_params(equation.params)
  return {e.primitive.name for jaxpr in inner for e in equations(jaxpr)}
