"""Which weights a name opens: one set of a folder, an adapter's base; and what is refused."""

import json
import os
import shutil

import numpy as np
import pytest

from pgjax import convert
from pgjax.checkpoints import initial, source as source_lib
from pgjax.config import model_init
from pgjax.errors import UserError
from pgjax.formats import lazy_array, safetensors, weight_sets
from pgjax.huggingface import names as hf_names, peft
from pgjax.params import lazy
from pgjax.params.rules import Rule
from tests.commands.test_convert import LLM, arrays, random_leaves, run, source, vocabulary

ROWS = 1792  # Of the token table: one for each id of the tokenizer.
FIELDS = vocabulary(LLM["gemma2"], ROWS)
NORM = "llm/final_norm/scale"
LEAF = "llm/layers/mlp/linear"


def written(folder, seed=0):
  """A Hugging Face folder with random weights; {our name: array}."""
  leaves = random_leaves(FIELDS, seed=seed)
  convert.WRITERS["hf"](folder, source(FIELDS), leaves)
  return {name: leaf.whole() for name, leaf in leaves.items()}


def tensors_of(values):
  """What a Hugging Face folder holds for {our name: array}."""
  leaves = {name: lazy_array.of_array(array) for name, array in values.items()}
  return hf_names.to_hf(leaves, ROWS + hf_names.IMAGE_ROWS)


def add_shards(folder, values, index="model.safetensors.index.json"):
  """Writes two shards and their index beside what is there."""
  tensors = tensors_of(values)
  shard_of = {}
  for i, part in enumerate((tensors[::2], tensors[1::2]), 1):
    name = f"model-{i:05d}-of-00002.safetensors"
    safetensors.write_safetensors_file(folder / name, part)
    shard_of |= {t.name: name for t in part}
  (folder / index).write_text(json.dumps(dict(weight_map=shard_of)))


def opened(folder, **how):
  return source_lib.open_source(str(folder), **how).leaves[NORM].whole()


@pytest.fixture
def two(tmp_path):
  """(a folder with a whole file and older shards of other numbers, both sets of arrays)."""
  whole, shards = written(tmp_path / "hf"), written(tmp_path / "other", seed=1)
  add_shards(tmp_path / "hf", shards)
  os.utime(tmp_path / "hf/model.safetensors", (1_700_000_000, 1_700_000_000))
  return tmp_path / "hf", whole, shards


def test_two_sets_of_weights_are_refused_with_sizes_and_dates(two):
  folder, whole, shards = two
  with pytest.raises(UserError) as error:
    opened(folder)
  message = str(error.value)
  for part in (
    "has 2 sets of weights: model.safetensors (0.4",
    " MB, 2023-11-1",
    "model.safetensors.index.json (2 files, 0.4",
    "--weights=model.safetensors",
    'ckpt("FOLDER", weights="...")',
  ):
    assert part in message, (part, message)
  np.testing.assert_array_equal(opened(folder, weights="model.safetensors"), whole[NORM])
  chosen = opened(folder, weights="model.safetensors.index.json")
  np.testing.assert_array_equal(chosen, shards[NORM])
  with pytest.raises(UserError, match=r"--weights=other\.safetensors is none of the weights in"):
    opened(folder, weights="other.safetensors")


@pytest.mark.slow
def test_the_flag_of_convert_chooses_and_verify_compares_with_what_was_read(two, tmp_path, capsys):
  folder, whole, _ = two
  flags = (f"--src={folder}", f"--dst={tmp_path}/x.npz", "--to=bv")
  with pytest.raises(UserError, match="has 2 sets of weights"):
    run(*flags)
  assert run(*flags, "--weights=model.safetensors", "--verify") == 0
  np.testing.assert_array_equal(arrays(tmp_path / "x.npz")[NORM], whole[NORM])
  assert "largest difference 0" in capsys.readouterr().out


OTHERS = {
  "a variant": "model.fp16.safetensors",
  "an adapter": "adapter_model.safetensors",
  "another file": "consolidated.safetensors",
  "shards without an index": "model-00001-of-00003.safetensors",
}


@pytest.mark.parametrize("what", OTHERS)
def test_any_second_set_is_refused(what, tmp_path):
  written(tmp_path / "hf")
  shutil.copy(tmp_path / "hf/model.safetensors", tmp_path / "hf" / OTHERS[what])
  with pytest.raises(UserError, match="has 2 sets of weights"):
    opened(tmp_path / "hf")
  assert opened(tmp_path / "hf", weights="model.safetensors").shape == (32,)


def test_a_second_index_is_refused(tmp_path):
  values = written(tmp_path / "hf")
  (tmp_path / "hf/model.safetensors").unlink()
  add_shards(tmp_path / "hf", values)
  assert opened(tmp_path / "hf").shape == (32,)
  index = tmp_path / "hf" / safetensors.INDEX
  shutil.copy(index, tmp_path / "hf/model.safetensors.index.fp16.json")
  with pytest.raises(UserError, match="has 2 sets of weights"):
    opened(tmp_path / "hf")


def test_an_index_takes_each_tensor_from_the_file_that_it_names(tmp_path):
  """A shard may hold a leftover of a tensor that is in another shard by now."""
  values = written(tmp_path / "hf")
  (tmp_path / "hf/model.safetensors").unlink()
  add_shards(tmp_path / "hf", values)
  stale = {name: array + 1 for name, array in values.items()}
  both = [*tensors_of(values)[1::2], *tensors_of(stale)[::2]]
  safetensors.write_safetensors_file(tmp_path / "hf/model-00002-of-00002.safetensors", both)
  read = source_lib.open_source(str(tmp_path / "hf")).leaves
  for name, array in values.items():
    np.testing.assert_array_equal(read[name].whole(), array, name)


def test_sets_without_an_index_are_listed_together(tmp_path):
  for name in ("a.safetensors", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"):
    (tmp_path / name).write_bytes(b"x" * 1000)
  (tmp_path / "n-00001-of-00001.safetensors").touch()
  names = [found.name for found in weight_sets.sets_of(tmp_path)]
  assert names == ["a.safetensors", "n-00001-of-00001.safetensors", "m-*-of-00002.safetensors"]
  assert str(weight_sets.sets_of(tmp_path)[-1]).startswith(names[-1] + " (2 files, 0.002 MB, 20")


def test_weights_can_only_be_chosen_in_a_hugging_face_folder(tmp_path):
  original = source(FIELDS)
  convert.WRITERS["bv"](tmp_path / "x.npz", original, original.leaves)
  with pytest.raises(
    UserError, match=r"--weights=a\.safetensors chooses between files of a Hugging"
  ):
    source_lib.open_source(str(tmp_path / "x.npz"), weights="a.safetensors")


def add_adapter(folder, base="/content/drive/base"):
  """An adapter of one leaf, as PEFT writes it."""
  shapes = {n: leaf.shape for n, leaf in random_leaves(FIELDS).items()}
  rng = np.random.default_rng(0)
  factors = (rng.normal(size=s).astype(np.float32) for s in ((3, 48, 2), (3, 2, 32)))
  one = lazy.Adapter(*map(lazy_array.of_array, factors), Rule("lora", rank=2, alpha=4))
  peft.write(folder, peft.Folder({LEAF: one}, {}, base), shapes)
  return str(folder)


def test_an_adapter_s_base_is_given_with_every_way_to_open_it(tmp_path):
  written(tmp_path / "base")
  adapter = add_adapter(tmp_path / "a")
  with pytest.raises(
    UserError, match=r"/content/drive/base.*give --base=CKPT.*There is no"
  ) as error:
    source_lib.open_source(adapter)
  assert "ckpt('ADAPTER', base='CKPT')" in str(error.value)
  base = str(tmp_path / "base")
  assert source_lib.open_source(adapter, base=base).folder.base == base
  spec = model_init.parse(f"ckpt({adapter!r}, base={base!r})")
  assert (spec.name, spec.base, spec.part) == (adapter, base, "")
  assert initial._leaves_of(f"ckpt({adapter!r}, base={base!r})")[1].keys() == {LEAF}  # noqa: SLF001
  plain = source_lib.open_source(base)
  with pytest.raises(UserError, match="--base=x is for PEFT's adapters, and"):
    source_lib.check_base(plain, "x")


def test_an_adapter_beside_a_model_is_not_guessed(tmp_path):
  """transformers would open the base that the adapter names, PEFT the adapter."""
  values = written(tmp_path / "both")
  add_adapter(tmp_path / "a")
  for file in (peft.FILE, peft.CONFIG):
    shutil.copy(tmp_path / "a" / file, tmp_path / "both" / file)
  both = str(tmp_path / "both")
  with pytest.raises(
    UserError, match=r"2 sets of weights: adapter_model\.safetensors .*model\.saf"
  ):
    source_lib.open_source(both)
  assert source_lib.open_source(both, weights="model.safetensors").folder is None
  adapted = source_lib.open_source(both, weights=peft.FILE, base=both)
  assert adapted.adapters.keys() == {LEAF}
  np.testing.assert_array_equal(adapted.leaves[NORM].whole(), values[NORM])


def test_adapters_that_name_each_other_end(tmp_path):
  add_adapter(tmp_path / "a", base=str(tmp_path / "b"))
  add_adapter(tmp_path / "b", base=str(tmp_path / "a"))
  with pytest.raises(UserError, match="merge those first"):
    source_lib.open_source(str(tmp_path / "a"))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("ckpt()", "missing a required argument"),
    ("ckpt('a', bse='b')", "no argument 'bse'"),
    ("ckpt('a', weights=3)", "weights must be"),
  ],
)
def test_a_wrong_call_in_model_init_raises(text, message):
  with pytest.raises(UserError, match=message):
    model_init.parse(text)
  assert model_init.parse("x.npz:img") == model_init.Spec("x.npz", "img")
  assert model_init.parse("/a:b/c") == model_init.Spec("/a:b/c")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_number_that_is_not_finite_is_named(dtype, value):
  array = np.zeros((3, 70_000), np.float32).astype(lazy_array.np.dtype(dtype))
  leaf = lazy_array.finite(lazy_array.of_array(array), "llm/x")
  assert leaf.whole() is not None
  array[1, 66_000] = value
  np.testing.assert_array_equal(leaf.read(0, 1), array[:1])
  with pytest.raises(UserError, match="llm/x has 1 numbers that are NaN or infinite, of 210,000"):
    leaf.whole()


def test_convert_refuses_weights_with_nan(tmp_path):
  written(tmp_path / "hf")
  values = arrays(tmp_path / "hf")
  values[LEAF][1, 2, 3] = np.nan
  leaves = {n: lazy_array.of_array(a) for n, a in values.items()}
  shutil.rmtree(tmp_path / "hf")
  convert.WRITERS["hf"](tmp_path / "hf", source(FIELDS), leaves)
  for to, dst in (("bv", "x.npz"), ("orbax", "x"), ("hf", "y")):
    with pytest.raises(UserError, match=f"{LEAF} has 1 numbers that are NaN"):
      run(f"--src={tmp_path / 'hf'}", f"--dst={tmp_path / dst}", f"--to={to}")
  assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_an_index_without_its_files_is_shown_as_that(tmp_path):
  values = written(tmp_path / "hf")
  add_shards(tmp_path / "hf", values)
  for shard in (tmp_path / "hf").glob("model-*.safetensors"):
    shard.unlink()
  with pytest.raises(UserError, match=r"index\.json \(its files are missing\)"):
    opened(tmp_path / "hf")
  assert opened(tmp_path / "hf", weights="model.safetensors").shape == (32,)
