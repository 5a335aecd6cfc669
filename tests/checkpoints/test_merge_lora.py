"""A checkpoint with adapters: merged, exported to PEFT, and continued by a run."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from pgjax.checkpoints import (
  initial as initial_lib,
  load as load_params,
  orbax_params,
  restore,
  source as source_lib,
  tokenizers,
)
from pgjax.data import tokenizer
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.formats import lazy_array, npz, safetensors
from pgjax.huggingface import peft
from pgjax.models import paligemma
from pgjax.params import (
  lazy,
  names as param_names,
  of_model,
  rules as param_rules,
  storage,
  tree as param_tree,
)
from tests import tiny
from tests.commands.test_convert import (
  GEMMA2,
  IMG,
  RES,
  SIZES,
  arrays,
  assert_same_bits,
  random_leaves,
  run,
)

pytestmark = pytest.mark.xdist_group("merging")  # They share what is compiled.

LLM = dict(SIZES, num_heads=4, num_kv_heads=2, final_logits_softcap=30.0, vocab_size=128, **GEMMA2)
MODEL = dict(img=IMG, llm=LLM)
EVERY = ".*(kernel|_einsum.*|linear)"
LORA = [("img/embedding/.*", "freeze"), (EVERY, "lora(rank=3, alpha=6)"), (".*", "freeze")]
QLORA = [(p, s.replace("6)", '6, base="nf4")')) for p, s in LORA]
CONNECTOR = [
  ("img/head/.*", "train"),
  ("llm/layers/attn/.*", "lora(rank=3, alpha=6, rslora=True)"),
  (".*", 'freeze("int8")'),
]
TABLE = "llm/embedder/input_embedding"
OUT = "llm/layers/attn/attn_vec_einsum/w"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """({name: array} of a model, the big_vision file that holds it)."""
  tmp_path = tmp_path_factory.mktemp("base")
  values = {name: leaf.whole() for name, leaf in random_leaves(LLM).items()}
  npz.write_npz(tmp_path / "base.npz", {n: lazy_array.of_array(a) for n, a in values.items()})
  facts = dict(model=MODEL, res=RES)
  (tmp_path / "base.npz.pgjax.json").write_text(json.dumps(facts))
  shutil.copy(tokenizer.TINY, tmp_path / "base.npz.tokenizer.model")
  return values, str(tmp_path / "base.npz")


def how(patterns):
  return storage.of({n: leaf.shape for n, leaf in random_leaves(LLM).items()}, patterns, "float32")


def saved_run(patterns, values, model_init, folder):
  """Saves a run with these rules as after some steps; its {name: array}."""
  leaves, stored = how(patterns), {}
  for name, rule in leaves.rules.items():
    leaf = lazy_array.of_array(values[name] + (rule.kind == "train"))
    coded = lazy.encode(name, leaf, leaves) if rule.dtype in param_rules.QUANTIZED else {}
    stored |= {f"{name}/{part}": array for part, array in coded.items()} or {name: leaf}
  rng = np.random.default_rng(5)
  for name, leaf in param_tree.flatten(leaves.abstract()).items():
    if name.startswith(param_names.LORA):
      factor = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
      stored[name] = lazy_array.of_array(factor)
  config = dict(model=MODEL, res=RES, params=patterns, dtype="float32", model_init=model_init)
  position = dict(step=7, total_steps=7, evaluated=False)
  saved = dict(step=7, config=config, identity={}, position=position)
  orbax_params.write_params(folder, stored, saved, tokenizer.TINY.read_bytes())
  return {name: leaf.whole() for name, leaf in stored.items()}


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
  """({name: array} of a run with LoRA, its folder)."""
  values, name = base
  folder = tmp_path_factory.mktemp("lora") / "run"
  return saved_run(LORA, values, name, folder), str(folder)


def logits(variables):
  rng = np.random.default_rng(2)
  image = rng.uniform(-1, 1, (2, RES, RES, 3)).astype(np.float32)
  text = rng.integers(0, 128, (2, 6)).astype(np.int32)
  apply = jax.jit(paligemma.Model(**MODEL).apply)
  return np.asarray(apply({"params": variables}, image, text, np.zeros_like(text))[0])


def convert(src, dst, to, *flags):
  return run(f"--src={src}", f"--dst={dst}", f"--to={to}", *flags)


@pytest.mark.parametrize("to", ["hf", "bv", "orbax"])
def test_merged_weights_are_those_of_the_base_plus_the_products(adapted, base, tmp_path, to):
  stored, folder = adapted
  target = tmp_path / ("merged.npz" if to == "bv" else "merged")
  assert convert(folder, target, to, "--merge") == 0
  merged = arrays(target)
  a, b = (stored[f"lora/{OUT}/{factor}"] for factor in "ab")
  by_hand = base[0][OUT] + 6 / 3 * np.einsum("lnhr,lrd->lnhd", a, b)
  np.testing.assert_allclose(merged[OUT], by_hand, atol=1e-6)
  products = {name for name, rule in how(LORA).rules.items() if rule.kind == "lora"}
  assert len(products) == 12
  for name, array in merged.items():
    assert np.array_equal(array, base[0][name]) == (name not in products), name


def test_merged_answers_like_unmerged(adapted, base, tmp_path):
  stored, folder = adapted
  assert convert(folder, tmp_path / "merged", "hf", "--merge") == 0
  unmerged = logits(how(LORA).for_model(stored))
  assert np.abs(unmerged - logits(param_tree.unflatten(base[0]))).max() > 0.1
  merged = logits(param_tree.unflatten(arrays(tmp_path / "merged")))
  np.testing.assert_allclose(merged, unmerged, atol=1e-5 * np.abs(unmerged).max())


@pytest.mark.slow
def test_adapters_merge_into_the_quantized_base_or_another(base, tmp_path, capsys):
  values, name = base
  stored = saved_run(QLORA, values, name, tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "own", "hf", "--merge") == 0
  assert "the run's own base as stored, in nf4 (--base=CKPT takes" in capsys.readouterr().out
  assert convert(tmp_path / "run", tmp_path / "full", "hf", "--merge", f"--base={name}") == 0
  assert f"of 12 arrays are added to {name}" in capsys.readouterr().out
  own, full = arrays(tmp_path / "own"), arrays(tmp_path / "full")
  a, b = (stored[f"lora/{OUT}/{factor}"] for factor in "ab")
  product = 2 * np.einsum("lnhr,lrd->lnhd", a, b)
  np.testing.assert_allclose(full[OUT], values[OUT] + product, atol=1e-6)
  assert np.abs(own[OUT] - full[OUT]).max() > 0.01
  unmerged = logits(how(QLORA).for_model(stored))
  merged = logits(param_tree.unflatten(own))
  np.testing.assert_allclose(merged, unmerged, atol=1e-5 * np.abs(unmerged).max())


def test_another_base_brings_its_own_rows_of_the_token_table(adapted, base, tmp_path):
  """Those of Hugging Face's <image> and padding."""
  values = dict(base[0])
  values[TABLE] = np.pad(values[TABLE], ((0, 64), (0, 0)), constant_values=3)
  leaves_of_base = {n: lazy_array.of_array(a) for n, a in values.items()}
  npz.write_npz(tmp_path / "rows.npz", leaves_of_base)
  facts = dict(model=dict(MODEL, llm=dict(LLM, vocab_size=192)), res=RES)
  (tmp_path / "rows.npz.pgjax.json").write_text(json.dumps(facts))
  flags = ["--merge", f"--base={tmp_path}/rows.npz"]
  assert convert(adapted[1], tmp_path / "o", "orbax", *flags) == 0
  np.testing.assert_array_equal(arrays(tmp_path / "o")[TABLE], values[TABLE])


def test_what_peft_s_folder_cannot_express_is_reported(base, tmp_path, capsys):
  rules = [("llm/.*/attn/.*", 'lora(3, dropout=0.1, base="nf4")'), *QLORA]
  saved_run(rules, base[0], None, tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "peft", "peft") == 0
  out = capsys.readouterr().out
  assert "The base was nf4 while the adapters were trained" in out
  assert "lora_dropout is 0.1, the largest of [0.0, 0.1]" in out
  assert "does not name its base model" in out


def test_fully_trained_leaves_are_merged_and_exported(base, tmp_path, capsys):
  """To the merged weights of any base, and into PEFT's folder, with the scale of rslora."""
  values, name = base
  saved_run(CONNECTOR, values, name, tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "a", "hf", "--merge", f"--base={name}") == 0
  assert "Fully trained: img/head/bias, img/head/kernel." in capsys.readouterr().out
  merged = arrays(tmp_path / "a")
  np.testing.assert_array_equal(merged["img/head/kernel"], values["img/head/kernel"] + 1)
  assert convert(tmp_path / "run", tmp_path / "peft", "peft", "--verify") == 0
  assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["use_rslora"] is True
  assert convert(tmp_path / "peft", tmp_path / "b", "hf", "--merge") == 0
  assert_same_bits(arrays(tmp_path / "b"), merged)


def test_a_merged_run_opens_as_full_weights(base, tmp_path):
  values, name = base
  saved_run(QLORA, values, name, tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "o", "orbax", "--merge", "--dtype=bfloat16") == 0
  opened = source_lib.open_source(str(tmp_path / "o"))
  assert opened.adapters == {}
  assert opened.run.config["params"] == [[".*", "train"]]
  assert {leaf.dtype.name for leaf in opened.leaves.values()} == {"bfloat16"}


def test_through_peft_s_folder_the_sum_is_the_same_bits(adapted, tmp_path, capsys):
  _, folder = adapted
  assert convert(folder, tmp_path / "direct", "hf", "--merge") == 0
  assert convert(folder, tmp_path / "peft", "peft", "--verify") == 0
  assert {p.name for p in (tmp_path / "peft").iterdir()} == {peft.CONFIG, peft.FILE}
  assert "DIFFERENT" not in capsys.readouterr().out
  assert convert(tmp_path / "peft", tmp_path / "again", "hf", "--merge") == 0
  assert_same_bits(arrays(tmp_path / "again"), arrays(tmp_path / "direct"))


def test_without_merge_both_options_are_named(adapted, tmp_path):
  with pytest.raises(UserError, match="--merge merges them, --to=peft writes only them"):
    convert(adapted[1], tmp_path / "x", "hf")
  assert not (tmp_path / "x").exists()


def initial(folder, patterns):
  """The initial parameters of a run with these rules, flat."""
  leaves = how(patterns)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), leaves.abstract()
  )
  return param_tree.flatten(initial_lib.load_initial(str(folder), abstract, leaves))


def test_a_run_continues_an_adapter_of_peft(adapted, tmp_path):
  """On the base that its folder names; and full fine-tuning starts from the sum."""
  stored, folder = adapted
  assert convert(folder, tmp_path / "peft", "peft") == 0
  assert_same_bits({n: np.asarray(a) for n, a in initial(tmp_path / "peft", LORA).items()}, stored)
  assert tokenizers.tokenizer_of(str(tmp_path / "peft")) == tokenizer.TINY.read_bytes()
  assert convert(folder, tmp_path / "merged", "hf", "--merge") == 0
  full = initial(tmp_path / "peft", [(".*", "train")])
  assert_same_bits({n: np.asarray(a) for n, a in full.items()}, arrays(tmp_path / "merged"))


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    ("rank=3", "rank=4", "alpha of the checkpoint"),
    ("alpha=6", "alpha=7", "alpha of the checkpoint"),
    (EVERY, "llm/layers/attn/.*", "one of 9 that it adapts and config.params does not"),
  ],
)
def test_another_rank_alpha_or_target_raises(adapted, tmp_path, before, after, message):
  assert convert(adapted[1], tmp_path / "peft", "peft") == 0
  rules = [tuple(text.replace(before, after) for text in rule) for rule in LORA]
  with pytest.raises(UserError, match=message):
    initial(tmp_path / "peft", rules)


def test_an_adapter_of_dora_is_merged_by_every_reader(adapted, tmp_path):
  """Also where config.params has the same factors, and where nothing is merged otherwise."""
  assert convert(adapted[1], tmp_path / "peft", "peft") == 0
  file = tmp_path / "peft" / peft.FILE
  tensors = {n: leaf.whole() for n, leaf in safetensors.read_safetensors_file(file).items()}
  for name, b in [item for item in tensors.items() if item[0].endswith("lora_B.weight")]:
    magnitude = np.random.default_rng(len(tensors)).uniform(0.5, 2, b.shape[:1])
    tensors[name.replace("lora_B", "lora_magnitude_vector")] = magnitude.astype(np.float32)
  entries = [safetensors.Tensor(n, a.shape, a.dtype, lambda a=a: [a]) for n, a in tensors.items()]
  safetensors.write_safetensors_file(file, entries)
  config = tmp_path / "peft" / peft.CONFIG
  config.write_text(json.dumps(json.loads(config.read_text()) | dict(use_dora=True)))
  assert convert(tmp_path / "peft", tmp_path / "x", "hf", "--merge") == 0
  expected = arrays(tmp_path / "x")
  full = initial(tmp_path / "peft", [(".*", "train")])
  assert_same_bits({n: np.asarray(a) for n, a in full.items()}, expected)
  with pytest.raises(UserError, match="is an adapter of DoRA"):
    initial(tmp_path / "peft", LORA)
  source = source_lib.open_source(str(tmp_path / "peft"))
  model, mesh = paligemma.Model(**MODEL), mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  config = tiny.config(params=LORA, res=RES)
  shapes = of_model.param_shapes(model, RES)
  for leaves in (
    restore.leaves_of(source, model, config),
    storage.of_rules(shapes, restore.rules(source, dtype="bfloat16")),
  ):
    abstract = load_params.abstract_params(leaves, config, mesh)
    loaded = param_tree.flatten(restore.load(source, abstract, leaves))
    assert loaded.keys() == expected.keys()
    assert loaded[OUT].dtype == "float32"
    np.testing.assert_array_equal(np.asarray(loaded[OUT]), expected[OUT])


def test_matrices_that_an_adapter_lacks_raise(base, tmp_path):
  values, name = base
  some = [("llm/layers/attn/.*", "lora(rank=3, alpha=6)"), (".*", "freeze")]
  saved_run(some, values, name, tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "peft", "peft") == 0
  with pytest.raises(UserError, match=r"one of 9 that config\.params adapts and it does not"):
    initial(tmp_path / "peft", LORA)


def test_an_adapter_names_its_base(adapted, base, tmp_path):
  assert convert(adapted[1], tmp_path / "peft", "peft", "--base=gone") == 0
  with pytest.raises(UserError, match=r"is an adapter on 'gone'.*no checkpoint 'gone'"):
    convert(tmp_path / "peft", tmp_path / "x", "hf", "--merge")
  assert convert(tmp_path / "peft", tmp_path / "x", "hf", "--merge", f"--base={base[1]}") == 0
  config = tmp_path / "peft" / "adapter_config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | dict(base_model_name_or_path="")))
  with pytest.raises(UserError, match="does not name its base model: give --base"):
    source_lib.open_source(str(tmp_path / "peft"))


def test_a_base_of_another_size_raises(adapted, tmp_path):
  other = dict(LLM, mlp_dim=64)
  leaves_of_other = random_leaves(other)
  npz.write_npz(tmp_path / "other.npz", leaves_of_other)
  with pytest.raises(UserError, match=r"other.npz' does not fit the model.*mlp/linear"):
    convert(adapted[1], tmp_path / "x", "hf", "--merge", f"--base={tmp_path}/other.npz")


@pytest.mark.long
def test_peft_s_folder_names_the_model_below_all_adapters(adapted, base, tmp_path):
  """A run that continued an adapter has that adapter's base; one that merged it has none."""
  values, name = base
  assert convert(adapted[1], tmp_path / "first", "peft") == 0
  for before in (tmp_path / "first", adapted[1]):
    saved_run(LORA, values, str(before), tmp_path / "run")
    assert convert(tmp_path / "run", tmp_path / "next", "peft", "--dtype=bfloat16", "--verify") == 0
    assert peft.base_of(tmp_path / "next") == name
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "next")
  saved_run(CONNECTOR, values, str(tmp_path / "first"), tmp_path / "run")
  assert convert(tmp_path / "run", tmp_path / "none", "peft") == 0
  assert peft.base_of(tmp_path / "none") is None


def test_an_adapter_of_peft_is_scored_with_its_sums_in_float32(adapted, base, tmp_path):
  leaves_of_base = source_lib.open_source(base[1]).leaves
  half = {n: leaf.astype(ml_dtypes.bfloat16, n) for n, leaf in leaves_of_base.items()}
  npz.write_npz(tmp_path / "half.npz", half)
  shutil.copy(f"{base[1]}.pgjax.json", tmp_path / "half.npz.pgjax.json")
  assert convert(adapted[1], tmp_path / "peft", "peft", f"--base={tmp_path}/half.npz") == 0
  source = source_lib.open_source(str(tmp_path / "peft"))
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  model = paligemma.Model(**MODEL)
  for patterns, dtype in (([(".*", "train")], "float32"), (LORA, "bfloat16")):
    config = tiny.config(params=patterns, res=RES)
    leaves = restore.leaves_of(source, model, config)
    abstract = param_tree.flatten(load_params.abstract_params(leaves, config, mesh))
    assert abstract[OUT].dtype == dtype
    assert abstract["llm/final_norm/scale"].dtype == "bfloat16"
