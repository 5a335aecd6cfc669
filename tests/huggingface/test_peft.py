"""Adapters in PEFT's folders: the names, shapes and sums that PEFT means, there and back."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from pgjax.errors import UserError
from pgjax.formats import lazy_array, safetensors
from pgjax.huggingface import names as hf_names, peft
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import lazy, names as param_names, of_model
from pgjax.params.rules import Rule
from tests.commands.test_convert import IMG, LLM, RES

PREFIX = "base_model.model.model."
LAYER = "language_model.layers.1."
GEMMA = "llm/layers/"
RULE = Rule("lora", rank=4, alpha=16)
MODELS = ["gemma1", "gemma2", "heads_of_their_own"]


def shapes_of(llm="gemma2"):
  return of_model.param_shapes(paligemma.Model(img=IMG, llm=dict(LLM[llm], vocab_size=64)), RES)


def random(shape, seed=0):
  return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def base_leaves(shapes):
  return {n: lazy_array.of_array(random(s, i)) for i, (n, s) in enumerate(shapes.items())}


def folder_of(shapes, rules, whole=(), base="somewhere/pt"):
  adapters = {}
  for name, rule in rules.items():
    sizes = lora.factor_shapes(param_names.matrix(name), shapes[name], rule.rank)
    factors = {f: lazy_array.of_array(random(s, 7 + len(name))) for f, s in sizes.items()}
    adapters[name] = lazy.Adapter(**factors, rule=rule)
  leaves = base_leaves(shapes)
  return peft.Folder(adapters, {name: leaves[name] for name in whole}, base)


def merged(base, folder):
  sums = {n: lazy.merge_adapter(n, base[n], adapter) for n, adapter in folder.adapters.items()}
  return base | folder.whole | sums


def factors_of(folder):
  return {
    f"{name}/{factor}": getattr(adapter, factor).whole()
    for name, adapter in folder.adapters.items()
    for factor in "ab"
  }


def every_matrix(shapes, rule=RULE):
  return {name: rule for name in shapes if param_names.matrix(name)}


def tensors_in(folder):
  tensors = safetensors.read_safetensors_file(folder / "adapter_model.safetensors")
  return {name.removeprefix(PREFIX): leaf.whole() for name, leaf in tensors.items()}


def config_in(folder):
  return json.loads((folder / "adapter_config.json").read_text())


def save(folder, tensors, **config):
  """What PEFT would have written."""
  folder.mkdir()
  entries = [
    safetensors.Tensor(PREFIX + name, a.shape, a.dtype, lambda a=a: [a])
    for name, a in tensors.items()
  ]
  safetensors.write_safetensors_file(folder / "adapter_model.safetensors", entries)
  fields = dict(peft_type="LORA", r=4, lora_alpha=8, bias="none", init_lora_weights=True)
  (folder / "adapter_config.json").write_text(json.dumps(fields | config))
  return folder


def pair(module, rank, into, out, seed=0):
  return {
    f"{module}.lora_A.weight": random((rank, into), seed),
    f"{module}.lora_B.weight": random((out, rank), seed + 1),
  }


def in_hf(leaves):
  return {t.name: np.concatenate(list(t.blocks())) for t in hf_names.to_hf(leaves)}


@pytest.mark.parametrize("llm", MODELS)
def test_an_adapter_round_trips_bit_for_bit(llm, tmp_path):
  shapes = shapes_of(llm)
  folder = folder_of(shapes, every_matrix(shapes))
  peft.write(tmp_path / "a", folder, shapes)
  again = peft.read(tmp_path / "a", "a", shapes)
  assert {n: a.rule for n, a in again.adapters.items()} == every_matrix(shapes)
  assert again.base == "somewhere/pt"
  assert again.uneven == ()
  before, after = factors_of(folder), factors_of(again)
  assert after.keys() == before.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array, name)


def test_the_factors_are_in_peft_s_modules(tmp_path):
  shapes = shapes_of()
  folder = folder_of(shapes, every_matrix(shapes))
  peft.write(tmp_path / "a", folder, shapes)
  theirs, ours = tensors_in(tmp_path / "a"), factors_of(folder)
  kv = f"{GEMMA}attn/kv_einsum/w"
  np.testing.assert_array_equal(
    theirs[f"{LAYER}self_attn.v_proj.lora_A.weight"], ours[f"{kv}/a"][1, 1].T
  )
  np.testing.assert_array_equal(
    theirs[f"{LAYER}self_attn.v_proj.lora_B.weight"], ours[f"{kv}/b"][1, 1].reshape(4, 32).T
  )
  out = ours[f"{GEMMA}attn/attn_vec_einsum/w/a"][1].reshape(64, 4).T
  np.testing.assert_array_equal(theirs[f"{LAYER}self_attn.o_proj.lora_A.weight"], out)
  up = ours[f"{GEMMA}mlp/gating_einsum/b"][1, 1].T
  np.testing.assert_array_equal(theirs[f"{LAYER}mlp.up_proj.lora_B.weight"], up)
  vision = "vision_tower.vision_model.encoder.layers.0.self_attn.out_proj.lora_A.weight"
  assert theirs[vision].shape == (4, 24)
  assert theirs["multi_modal_projector.linear.lora_B.weight"].shape == (32, 4)
  assert len(theirs) == 2 * (3 * 7 + 2 * 6 + 1)


@pytest.mark.parametrize("llm", MODELS)
def test_what_is_merged_is_the_sum_of_each_module(llm, tmp_path):
  shapes = shapes_of(llm)
  folder, base = folder_of(shapes, every_matrix(shapes)), base_leaves(shapes)
  peft.write(tmp_path / "a", folder, shapes)
  factors = tensors_in(tmp_path / "a")
  before, after = in_hf(base), in_hf(merged(base, folder))
  changed = [n for n in before if not np.array_equal(before[n], after[n])]
  assert len(changed) == len(factors) / 2
  for name in changed:
    path = name.replace("language_model.model.", "language_model.").removesuffix(".weight")
    product = factors[f"{path}.lora_B.weight"] @ factors[f"{path}.lora_A.weight"]
    np.testing.assert_allclose(after[name], before[name] + 16 / 4 * product, atol=1e-6)


def test_rows_of_a_merged_leaf_are_rows_of_the_whole():
  shapes = shapes_of()
  full = merged(base_leaves(shapes), folder_of(shapes, every_matrix(shapes)))
  for name in ("img/head/kernel", f"{GEMMA}mlp/gating_einsum"):
    np.testing.assert_allclose(full[name].read(1, 3), full[name].whole()[1:3], atol=1e-6)


def test_the_configuration_names_what_differs(tmp_path):
  shapes = shapes_of()
  rules = {
    f"{GEMMA}attn/q_einsum/w": RULE,
    f"{GEMMA}attn/kv_einsum/w": RULE._replace(dropout=0.1),
    f"{GEMMA}mlp/linear": RULE._replace(rank=2, alpha=3.5),
    "img/head/kernel": RULE,
  }
  peft.write(tmp_path / "a", folder_of(shapes, rules), shapes)
  config = config_in(tmp_path / "a")
  down = r"language_model\.(.*\.)?layers\.\d+\.mlp\.down_proj"
  assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 16, 0.1)
  assert config["rank_pattern"] == {down: 2}
  assert config["alpha_pattern"] == {down: 3.5}
  assert config["base_model_name_or_path"] == "somewhere/pt"
  assert (config["use_rslora"], config["modules_to_save"]) == (False, None)
  targets = [
    *("model.language_model.layers.12.self_attn.q_proj", "model.multi_modal_projector.linear"),
    "language_model.model.layers.0.mlp.down_proj",
  ]
  assert all(re.fullmatch(config["target_modules"], path) for path in targets)
  for path in ("vision_tower.encoder.layers.0.self_attn.q_proj", "language_model.layers.0.mlp.up"):
    assert not re.fullmatch(config["target_modules"], path)
  assert peft.read(tmp_path / "a", "a", shapes).adapters[f"{GEMMA}mlp/linear"].rule.scale == 3.5 / 2


def test_the_scale_of_rslora_is_exported(tmp_path):
  shapes, leaf = shapes_of(), f"{GEMMA}mlp/linear"
  stable = {leaf: RULE._replace(rslora=True)}
  mixed = stable | {f"{GEMMA}attn/q_einsum/w": RULE}
  for name, rules, flag in (("stable", stable, True), ("mixed", mixed, False)):
    peft.write(tmp_path / name, folder_of(shapes, rules), shapes)
    assert config_in(tmp_path / name)["use_rslora"] is flag
    assert peft.read(tmp_path / name, name, shapes).adapters[leaf].rule.scale == 16 / 4**0.5


def test_a_trained_connector_is_exported(tmp_path):
  shapes, head = shapes_of(), ("img/head/kernel", "img/head/bias")
  rules = {f"{GEMMA}mlp/linear": RULE}
  folder = folder_of(shapes, rules, whole=head)
  peft.write(tmp_path / "a", folder, shapes)
  assert config_in(tmp_path / "a")["modules_to_save"] == ["multi_modal_projector"]
  kernel = folder.whole["img/head/kernel"].whole()
  saved = tensors_in(tmp_path / "a")["multi_modal_projector.linear.weight"]
  np.testing.assert_array_equal(saved, kernel.T)
  again = peft.read(tmp_path / "a", "a", shapes)
  other = base_leaves(shapes) | {"img/head/kernel": lazy_array.of_array(np.zeros_like(kernel))}
  full = merged(other, again)
  np.testing.assert_array_equal(full["img/head/kernel"].whole(), kernel)


def test_parts_that_are_adapted_differently_give_the_same_sum(tmp_path):
  """PEFT's defaults adapt only q and v; keys and values are one leaf here."""
  shapes = shapes_of()
  query, value = (f"{LAYER}self_attn.{name}_proj" for name in "qv")
  tensors = pair(query, 4, 32, 64) | pair(value, 2, 32, 32, 5)
  other = "language_model.layers.0.self_attn.v_proj"
  tensors |= pair(other, 3, 32, 32, 9)
  folder = save(tmp_path / "a", tensors, alpha_pattern={"layers.0.self_attn.v_proj": 6})
  adapter = peft.read(folder, "a", shapes)
  assert sorted(adapter.uneven) == [f"{GEMMA}attn/kv_einsum/w", f"{GEMMA}attn/q_einsum/w"]
  before = in_hf(base_leaves(shapes))
  after = in_hf(merged(base_leaves(shapes), adapter))
  for path, scale in ((query, 8 / 4), (value, 8 / 2), (other, 6 / 3)):
    name = path.replace("language_model.", "language_model.model.") + ".weight"
    product = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    np.testing.assert_allclose(after.pop(name), before[name] + scale * product, atol=1e-6)
  for name, array in after.items():
    np.testing.assert_array_equal(array, before[name])


def test_half_precision_is_read_as_float32(tmp_path):
  shapes, path = shapes_of(), "multi_modal_projector.linear"
  tensors = {n: a.astype(ml_dtypes.bfloat16) for n, a in pair(path, 4, 24, 32).items()}
  adapter = peft.read(save(tmp_path / "a", tensors), "a", shapes)
  a = adapter.adapters["img/head/kernel"].a.whole()
  assert a.dtype == np.float32
  np.testing.assert_array_equal(a, tensors[f"{path}.lora_A.weight"].T.astype(np.float32))


def magnitude(module, out, seed):
  return {f"{module}.lora_magnitude_vector": random((out,), seed)}


@pytest.mark.parametrize("ending", ["", ".weight"])
def test_dora_gives_each_output_the_norm_of_its_magnitude(ending, tmp_path):
  """Each module alone, in PEFT's formula; modules that are not adapted keep their bits."""
  shapes, sizes = shapes_of(), {}
  for i, path in enumerate(
    f"{LAYER}{name}" for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
  ):
    into, out = {0: (32, 32), 1: (64, 32), 2: (32, 48)}[i]
    sizes[path] = pair(path, 2 + i, into, out, 3 * i), magnitude(path, out, 3 * i + 2)
  path = "multi_modal_projector.linear"
  sizes[path] = pair(path, 4, 24, 32, 20), magnitude(path, 32, 22)
  tensors = {}
  for factors, norms in sizes.values():
    tensors |= factors | {f"{name}{ending}": array for name, array in norms.items()}
  folder = peft.read(save(tmp_path / "a", tensors, use_dora=True), "a", shapes)
  assert set(folder.uneven) == set(folder.adapters)
  before = in_hf(base_leaves(shapes))
  full = merged(base_leaves(shapes), folder)
  after = in_hf(full)
  for path, (factors, norms) in sizes.items():
    name = path.replace("language_model.", "language_model.model.") + ".weight"
    a, b = factors.values()
    total = before[name].astype(np.float64) + 8 / len(a) * (b.astype(np.float64) @ a)
    [norms] = norms.values()
    expected = total * (norms / np.linalg.norm(total, axis=1))[:, None]
    np.testing.assert_allclose(after.pop(name), expected, rtol=0, atol=1e-6)
  for name, array in after.items():
    np.testing.assert_array_equal(array, before[name])
  kernel = full["img/head/kernel"]
  np.testing.assert_array_equal(kernel.read(1, 3), kernel.whole()[1:3])
  with pytest.raises(UserError, match="DoRA are read and merged, not written"):
    peft.check_faithful(folder)


def test_magnitudes_that_are_no_dora_are_refused(tmp_path):
  path, shapes = f"{LAYER}self_attn.q_proj", shapes_of()
  factors, norms = pair(path, 4, 32, 64), magnitude(path, 64, 2)
  with pytest.raises(UserError, match=r"use_dora=False .*the magnitudes of .* have the shape"):
    peft.read(save(tmp_path / "a", factors | norms), "a", shapes)
  [name] = norms
  norms[name][5] = np.nan
  folder = peft.read(save(tmp_path / "b", factors | norms, use_dora=True), "b", shapes)
  with pytest.raises(UserError, match=r"q_proj.*NaN"):
    merged(base_leaves(shapes), folder)[f"{GEMMA}attn/q_einsum/w"].whole()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(use_dora=True), "magnitudes of language_model.model.layers.1.self_attn.q_proj.weight"),
    (dict(peft_type="IA3"), "peft_type='IA3'"),
    (dict(bias="all"), "bias='all'"),
    (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
  ],
)
def test_features_beyond_lora_are_refused(fields, message, tmp_path):
  folder = save(tmp_path / "a", pair(f"{LAYER}self_attn.q_proj", 4, 32, 64), **fields)
  with pytest.raises(UserError, match=re.escape(message)):
    peft.read(folder, "a", shapes_of())


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    (pair(f"{LAYER}self_attn.q_proj", 4, 48, 64), r"they must be \[rank, 32\] and \[64, rank\]"),
    (pair("language_model.layers.9.mlp.up_proj", 4, 32, 48), "layers.9.mlp.up_proj.lora_A"),
    (pair("language_model.embed_tokens", 4, 32, 48), "embed_tokens.lora_A"),
    ({}, "no factors"),
    ({"multi_modal_projector.linear.weight": random((9, 9))}, "wrong shape|does not fit"),
  ],
)
def test_an_adapter_for_another_model_raises(tensors, message, tmp_path):
  if "multi_modal_projector.linear.weight" in tensors:
    tensors |= {"multi_modal_projector.linear.bias": random(9)}
  folder = save(tmp_path / "a", tensors)
  with pytest.raises(UserError, match=message) as error:
    peft.read(folder, "theirs", shapes_of())
  assert "theirs" in str(error.value)


def test_a_pickle_raises(tmp_path):
  folder = save(tmp_path / "a", {})
  (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
  with pytest.raises(UserError, match="safe_serialization=True"):
    peft.read(folder, "a", shapes_of())


def test_what_peft_cannot_store_raises():
  shapes = shapes_of()
  rules = {f"{GEMMA}mlp/linear": RULE}
  peft.check_faithful(folder_of(shapes, rules, whole=("img/head/kernel", "img/head/bias")))
  with pytest.raises(UserError, match="llm/final_norm/scale and 0 more were fully trained"):
    peft.check_faithful(folder_of(shapes, rules, whole=("llm/final_norm/scale",)))
  both = rules | {"img/head/kernel": RULE}
  with pytest.raises(UserError, match="--merge --to=hf"):
    peft.check_faithful(folder_of(shapes, both, whole=("img/head/bias",)))
