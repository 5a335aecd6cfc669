"""Checkpoint folders of big_vision and openpi: the same arrays by the same names, or an error."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from pgjax.checkpoints import source as source_lib, tokenizers
from pgjax.data import tokenizer
from pgjax.errors import UserError
from pgjax.params.tree import unflatten
from tests.commands.test_convert import GEMMA2, SIZES, random_leaves

LLM = dict(SIZES, num_heads=4, num_kv_heads=2, vocab_size=128, **GEMMA2)
TABLE = "llm/embedder/input_embedding"


@pytest.fixture(scope="module")
def arrays():
  arrays = {name: leaf.whole() for name, leaf in random_leaves(LLM).items()}
  arrays["llm/final_norm/scale"] = arrays["llm/final_norm/scale"].astype("bfloat16")
  return arrays


def save_big_vision(folder, arrays):
  """As its utils.tssave with jax's tensorstore specs: a zarr folder for each array."""
  for name, array in arrays.items():
    store = dict(driver="file", path=str(folder / name.replace("/", "~")))
    metadata = dict(chunks=[-(-array.shape[0] // 2), *array.shape[1:]], compressor=dict(id="zstd"))
    spec = dict(driver="zarr", kvstore=store, metadata=metadata)
    dtype = tensorstore.dtype(array.dtype)
    tensorstore.open(spec, create=True, shape=array.shape, dtype=dtype).result().write(
      array
    ).result()


def save_openpi(folder, arrays, ending=""):
  """As its training/checkpoints.py: one tree of Orbax; flax.nnx ends names in `value`."""
  tree = unflatten({f"params/{name}{ending}": array for name, array in arrays.items()})
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder, tree)


def assert_opens(path, arrays, others):
  source = source_lib.open_source(str(path))
  assert source.leaves.keys() == arrays.keys()
  for name, array in arrays.items():
    read = source.leaves[name].whole()
    assert (read.dtype, read.tobytes()) == (array.dtype, array.tobytes()), name
    if len(array) > 1:
      np.testing.assert_array_equal(source.leaves[name].read(1, 2), array[1:2])
  assert source.model["llm"]["num_kv_heads"] == 2
  assert any(f"{others} other arrays" in note for note in source.notes)
  return source


def test_a_checkpoint_of_big_vision_is_opened_by_its_folder_or_its_workdir(arrays, tmp_path):
  folder = tmp_path / "checkpoint.bv-000000007"
  saved = {f"params/{name}": array for name, array in arrays.items()}
  save_big_vision(folder, saved | {"opt/0/mu/llm/final_norm/scale": np.ones(3, np.float32)})
  assert_opens(folder, arrays, 1)
  (tmp_path / "checkpoint.bv-LAST").write_text("000000007")
  (tmp_path / "tokenizer.model").write_bytes(tokenizer.TINY.read_bytes())
  source = assert_opens(tmp_path, arrays, 1)
  assert source.tokenizer == tokenizer.TINY.read_bytes()
  assert tokenizers.tokenizer_of(str(tmp_path)) == tokenizer.TINY.read_bytes()
  [*_, chunk] = sorted((folder / f"params~{TABLE.replace('/', '~')}").glob("[0-9]*"))
  chunk.unlink()
  [note] = [n for n in source_lib.open_source(str(folder)).notes if "missing" in n]
  assert note.startswith(f"1 files of 1 arrays are missing, {TABLE} first")
  for name in ("000000008", "../../x"):
    (tmp_path / "checkpoint.bv-LAST").write_text(name)
    with pytest.raises(UserError, match=r"LAST names the checkpoint .* is not there"):
      source_lib.open_source(str(tmp_path))


@pytest.mark.parametrize("ending", ["", "/value"])
def test_paligemma_in_a_checkpoint_of_openpi_is_opened(ending, arrays, tmp_path):
  saved = {f"PaliGemma/{name}": array for name, array in arrays.items()}
  expert = np.ones((3, 2), np.float32)
  for name in ("layers/attn/q_einsum_1/w", "layers/mlp_1/linear", "final_norm_1/scale"):
    saved[f"PaliGemma/llm/{name}"] = expert
  save_openpi(tmp_path / "30/params", saved | {"action_in_proj/kernel": expert}, ending)
  for path in (tmp_path / "30", tmp_path / "30/params"):
    assert_opens(path, arrays, 4)
  for file in (tmp_path / "30/params").rglob("d/*"):
    file.unlink()
  with pytest.raises(UserError, match="30/params cannot be read"):
    source_lib.open_source(str(tmp_path / "30"))


def test_other_trees_are_refused_with_their_names(tmp_path):
  save_openpi(tmp_path / "params", {"model/embed/kernel": np.ones((2, 2), np.float32)})
  with pytest.raises(UserError, match=r"1 arrays and no PaliGemma.*but params/model/embed/kernel"):
    source_lib.open_source(str(tmp_path))
  save_big_vision(tmp_path / "b", {"params/img/x": np.ones(3, np.int32)})
  with pytest.raises(UserError, match=r"'img/x' holds int32\[3\]; weights are one of float32"):
    source_lib.open_source(str(tmp_path / "b"))
