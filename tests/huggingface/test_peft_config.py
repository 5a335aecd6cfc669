"""PEFT's patterns in the names of every transformers, and features that are refused by name."""

import json
import re

import numpy as np
import pytest

from pgjax.errors import UserError
from pgjax.formats import safetensors
from pgjax.huggingface import names as hf_names, peft, peft_config
from tests.huggingface.test_peft import (
  GEMMA,
  base_leaves,
  config_in,
  in_hf,
  merged,
  pair,
  random,
  shapes_of,
)

LAYER, QUERY = "model.language_model.layers.1.", "self_attn.q_proj"
VISION = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
CONNECTOR = "multi_modal_projector.linear"
# The same two modules as module paths of transformers before 4.52, of 4.52 to 4.57, and of 5.
PUBLISHED = {
  "before 4.52": (f"language_model.model.layers.1.{QUERY}", VISION, CONNECTOR),
  "4.52": (f"model.language_model.layers.1.{QUERY}", f"model.{VISION}", f"model.{CONNECTOR}"),
  "5": (
    f"model.language_model.layers.1.{QUERY}",
    "model.vision_tower.encoder.layers.0.self_attn.q_proj",
    f"model.{CONNECTOR}",
  ),
}
WRITTEN = {
  "as a path": lambda path: path,
  "inside of PEFT": lambda path: f"base_model.model.{path}",
  "as a regex": lambda path: re.escape(path),
  "from the start": lambda path: f"^{re.escape(path)}",
  "the end of the path": lambda path: ".".join(path.split(".")[-4:]),
}


def write(folder, tensors, **config):
  """What PEFT would have written; the names are module paths in memory."""
  folder.mkdir()
  entries = [
    safetensors.Tensor(f"base_model.model.{name}", a.shape, a.dtype, lambda a=a: [a])
    for name, a in tensors.items()
  ]
  safetensors.write_safetensors_file(folder / peft.FILE, entries)
  fields = dict(peft_type="LORA", r=4, lora_alpha=8, bias="none", init_lora_weights=True)
  (folder / peft.CONFIG).write_text(json.dumps(fields | config))
  return folder


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("named", PUBLISHED)
@pytest.mark.parametrize("saved", PUBLISHED)
def test_patterns_hold_in_every_spelling(saved, named, form, tmp_path):
  """Whichever version wrote the tensors: alpha 80 of rank 4 is a scale of 20, not of 2."""
  shapes, tensors = shapes_of(), {}
  sizes = ((32, 64), (24, 24), (24, 32))
  for i, (path, (into, out)) in enumerate(zip(PUBLISHED[saved], sizes, strict=True)):
    tensors |= pair(path, 4, into, out, 2 * i)
  alphas = {WRITTEN[form](path): 80 for path in PUBLISHED[named]}
  ranks = {WRITTEN[form](path): 4 for path in PUBLISHED[named]}
  folder = write(tmp_path / "a", tensors, alpha_pattern=alphas, rank_pattern=ranks)
  before = in_hf(base_leaves(shapes))
  after = in_hf(merged(base_leaves(shapes), peft.read(folder, "a", shapes)))
  for path in PUBLISHED[saved]:
    name = hf_names.canonical(f"{path}.weight")
    product = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    np.testing.assert_allclose(after.pop(name), before[name] + 20 * product, atol=1e-5)
  for name, array in after.items():
    np.testing.assert_array_equal(array, before[name], name)


def test_the_first_pattern_that_matches_decides_as_in_peft(tmp_path):
  folder = write(
    tmp_path / "a",
    pair(f"{LAYER}{QUERY}", 4, 32, 64),
    alpha_pattern={"language_model.model.layers.1.self_attn.q_proj": 12, "q_proj": 40},
  )
  # As the file spells the module only the second matches: the first is for another version.
  alphas = peft.read(folder, "a", shapes_of()).adapters[f"{GEMMA}attn/q_einsum/w"].rule
  assert alphas.scale == 12 / 4


@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize("pattern", ["layers.9.self_attn.q_proj", "qproj", "model.layers.0.mlp"])
def test_a_pattern_that_matches_no_module_raises(field, pattern, tmp_path):
  tensors = pair(f"{LAYER}{QUERY}", 4, 32, 64)
  folder = write(tmp_path / "a", tensors, **{field: {"q_proj": 4, pattern: 4}})
  with pytest.raises(UserError, match=rf"theirs.*{field}\['{re.escape(pattern)}'\]=4 matches no"):
    peft.read(folder, "theirs", shapes_of())
  harmless = write(tmp_path / "b", tensors, **{field: {"q_proj": 4, "lm_head": 9, "fc1": 9}})
  assert peft.read(harmless, "b", shapes_of()).adapters


def test_another_rank_than_its_pattern_raises(tmp_path):
  folder = write(tmp_path / "a", pair(f"{LAYER}{QUERY}", 4, 32, 64), rank_pattern={"q_proj": 6})
  with pytest.raises(UserError, match=r"has rank 6 for .*q_proj.*has the shape \(4, 32\)"):
    peft.read(folder, "a", shapes_of())


def test_every_module_of_the_model_is_matched_by_the_pattern_of_its_path():
  shapes = shapes_of()
  modules = {name.rpartition(".")[0] for name in hf_names.hf_shapes(shapes)}
  for module in modules:
    config = dict(alpha_pattern={re.escape(module): 3})
    found = peft_config.by_pattern(config, "alpha_pattern", {module: "elsewhere"}, modules, "a")
    assert found == {module: 3}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(lora_bias=True), r"lora_bias=True \(a bias in each adapter\)"),
    (dict(bias="lora_only"), "bias='lora_only'"),
    (dict(init_lora_weights="olora"), "init_lora_weights='olora'"),
    (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights='pissa_niter_4'"),
    (dict(init_lora_weights="loftq"), "init_lora_weights='loftq'"),
    (dict(fan_in_fan_out=True), "fan_in_fan_out=True"),
    (dict(megatron_config=dict(tensor_model_parallel_size=2)), "megatron_config="),
    (dict(layer_replication=[[0, 2], [1, 3]]), "layer_replication="),
    (dict(trainable_token_indices=[1]), "trainable_token_indices="),
    (dict(target_parameters=["q_proj.weight"]), "target_parameters="),
    (dict(use_new_idea=True), "use_new_idea=True is a field that this version of pgjax does not"),
    (dict(scaling_power=0.5), "scaling_power=0.5 is a field that"),
  ],
)
def test_fields_that_change_the_sums_are_refused_by_name(fields, message, tmp_path):
  folder = write(tmp_path / "a", pair(f"{LAYER}{QUERY}", 4, 32, 64), **fields)
  with pytest.raises(UserError, match=message) as error:
    peft.read(folder, "a", shapes_of())
  assert "merge_and_unload()" in str(error.value)


def test_fields_that_change_nothing_are_read(tmp_path):
  fields = dict(
    layers_to_transform=[1],
    layers_pattern="layers",
    exclude_modules=["o_proj"],
    target_modules=["q_proj"],
    use_new_idea=False,
    new_config=None,
    megatron_core="megatron.core",
    qalora_group_size=16,
    init_lora_weights="eva",
    loftq_config={},
  )
  folder = write(tmp_path / "a", pair(f"{LAYER}{QUERY}", 4, 32, 64), **fields)
  assert set(peft.read(folder, "a", shapes_of()).adapters) == {f"{GEMMA}attn/q_einsum/w"}


VECTOR = random((64,))
REFUSED = {
  "DoRA": ({f"{LAYER}{QUERY}.lora_magnitude_vector": VECTOR}, "DoRA"),
  "a bias": ({f"{LAYER}{QUERY}.lora_B.bias": VECTOR}, "a bias in an adapter"),
  "lm_head": (
    {"lm_head.lora_A.weight": random((4, 32)), "lm_head.lora_B.weight": random((64, 4))},
    r"the head \(lm_head\)",
  ),
  "lm_head of an older version": (
    pair("language_model.lm_head", 4, 32, 64),
    r"the head \(lm_head\)",
  ),
  "embeddings": (
    {
      "model.language_model.embed_tokens.lora_embedding_A": random((4, 64)),
      "model.language_model.embed_tokens.lora_embedding_B": random((32, 4)),
    },
    r"the token table \(embed_tokens\)",
  ),
  "the patch embedding": (
    {
      "model.vision_tower.vision_model.embeddings.patch_embedding.lora_A.weight": random(
        (4, 3, 14, 14)
      ),
      "model.vision_tower.vision_model.embeddings.patch_embedding.lora_B.weight": random(
        (24, 4, 1, 1)
      ),
    },
    "the patch embedding, a convolution",
  ),
  "trained tokens": (
    {"model.language_model.embed_tokens.token_adapter.trainable_tokens_delta": random((2, 32))},
    "single trained rows",
  ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_adapters_of_other_modules_are_refused_by_name(what, tmp_path):
  extra, message = REFUSED[what]
  folder = write(tmp_path / "a", pair(f"{LAYER}{QUERY}", 4, 32, 64) | extra)
  with pytest.raises(UserError, match=message) as error:
    peft.read(folder, "theirs", shapes_of())
  assert "'theirs' has" in str(error.value)


TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def test_a_token_table_beside_the_base_s_head_is_refused(tmp_path):
  """PEFT unties the two: the merged table would be the head too."""
  tensors, table = pair(f"{LAYER}{QUERY}", 4, 32, 64), random((64, 32))
  for i, (extra, what) in enumerate(
    [
      ({TABLE: table}, "trained embed_tokens as a whole"),
      ({HEAD: table}, "trained lm_head as a whole"),
      ({TABLE: table, HEAD: 2 * table}, "and another lm_head"),
    ]
  ):
    folder = write(tmp_path / str(i), tensors | extra, modules_to_save=["embed_tokens"])
    with pytest.raises(UserError, match=what):
      peft.read(folder, "theirs", shapes_of())
  folder = write(
    tmp_path / "tied", tensors | {TABLE: table, HEAD: table}, modules_to_save=["embed_tokens"]
  )
  whole = peft.read(folder, "theirs", shapes_of()).whole
  np.testing.assert_array_equal(whole["llm/embedder/input_embedding"].whole(), table)


def test_a_saved_module_without_weights_raises(tmp_path):
  tensors = pair(f"{LAYER}{QUERY}", 4, 32, 64)
  folder = write(tmp_path / "a", tensors, modules_to_save=["multi_modal_projector"])
  with pytest.raises(UserError, match="names 'multi_modal_projector' in modules_to_save"):
    peft.read(folder, "a", shapes_of())


def test_two_names_of_one_weight_raise(tmp_path):
  both = pair(f"{LAYER}{QUERY}", 4, 32, 64) | pair(
    f"language_model.model.layers.1.{QUERY}", 4, 32, 64, 7
  )
  with pytest.raises(UserError, match="are two names of the same weight"):
    peft.read(write(tmp_path / "a", both), "a", shapes_of())


def test_the_base_s_revision_is_read_and_written(tmp_path):
  tensors = pair(f"{LAYER}{QUERY}", 4, 32, 64)
  base = dict(base_model_name_or_path="google/paligemma-3b-pt-224", revision="bfloat16")
  folder = write(tmp_path / "a", tensors, **base)
  assert peft.base_of(folder) == "google/paligemma-3b-pt-224@bfloat16"
  shapes = shapes_of()
  read = peft.read(folder, "a", shapes)._replace(base=peft.base_of(folder))
  peft.write(tmp_path / "b", read, shapes)
  again = config_in(tmp_path / "b")
  assert {n: again[n] for n in base} == base
  local = tmp_path / "a@b"
  local.mkdir()
  peft.write(tmp_path / "c", read._replace(base=str(local)), shapes)
  assert config_in(tmp_path / "c")["base_model_name_or_path"] == str(local)
  assert json.loads((tmp_path / "c" / peft.CONFIG).read_text())["revision"] is None
