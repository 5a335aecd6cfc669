"""A checkpoint restored onto a mesh: the stored bits on any mesh, or an error."""

import json
import pathlib

import numpy as np
import pytest
import small_checkpoint
import tiny

from pgjax.checkpoints import load as load_params, orbax_params, restore, source as source_lib
from pgjax.config import load as config_load
from pgjax.errors import UserError
from pgjax.formats import lazy_array
from pgjax.models import paligemma
from pgjax.params import of_model, rules as param_rules, storage, tree as param_tree

QLORA = [
  (".*/attn/.*", 'lora(rank=2, base="nf4", double=True, block=8)'),
  ("img/.*", 'freeze("int8", block=8)'),
  ("llm/embedder/.*", "train"),
  (".*", 'freeze("bfloat16")'),
]


def restored(source, devices=1, quantize=None):
  """Its parameters on N devices, by name."""
  config = config_load.from_dict(dict(source.run.config, sharding_strategy=tiny.FSDP))
  model = paligemma.Model(**config.model)
  leaves = restore.leaves_of(source, model, config, quantize)
  abstract = load_params.abstract_params(leaves, config, tiny.mesh(devices=devices))
  return param_tree.flatten(restore.load(source, abstract, leaves))


def test_arrays_of_a_run_are_restored_unchanged_on_every_mesh(tmp_path, root):
  """Codes, doubly quantized scales and factors too: nothing is decoded and coded again."""
  source = source_lib.open_source(
    small_checkpoint.write(tmp_path / "7", root, params=QLORA, dtype="bfloat16")
  )
  stored = orbax_params.leaves(source.run)
  for devices in (1, 8):
    arrays = restored(source, devices)
    assert arrays.keys() == stored.keys() >= {"lora/llm/layers/attn/q_einsum/w/a"}
    for name, leaf in stored.items():
      assert arrays[name].dtype == leaf.dtype, name
      assert np.asarray(arrays[name]).tobytes() == leaf.whole().tobytes(), name
    whole = arrays["llm/embedder/input_embedding"]
    assert whole.sharding.shard_shape(whole.shape)[0] == whole.shape[0] // devices


def test_quantized_matrices_are_converted_and_other_arrays_stay(tmp_path, root):
  source = source_lib.open_source(small_checkpoint.write(tmp_path / "7", root))
  arrays = restored(source, quantize="int8")
  stored = orbax_params.leaves(source.run)
  assert {"img/head/kernel/int8", "img/head/kernel/scale"} <= arrays.keys()
  assert arrays["img/head/bias"].dtype == "bfloat16"
  assert all(leaf.dtype == np.float32 for leaf in stored.values())


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_changed_array_raises(tmp_path, root, quantize):
  """Whether it is copied or converted."""
  source = source_lib.open_source(small_checkpoint.write(tmp_path / "7", root))
  source.run.sums["params/llm/layers/mlp/linear"] ^= 1
  message = "7 is damaged: .*params/llm/layers/mlp/linear.* changed since"
  with pytest.raises(UserError, match=message):
    restored(source, quantize=quantize)


def test_rules_describe_what_the_checkpoint_stores(tmp_path, root):
  folder = small_checkpoint.write(tmp_path / "7", root, params=QLORA, dtype="bfloat16")
  source = source_lib.open_source(folder)
  rules, saved = (
    restore.rules(source),
    param_rules.rules(source.run.config["params"], source.leaves),
  )
  for name, rule in saved.items():
    frozen = rule if rule.kind == "lora" else rule._replace(kind="freeze")
    assert rules[name]._replace(dtype=None) == frozen._replace(dtype=None), name
  shapes = of_model.param_shapes(paligemma.Model(**source.model), source.res)
  abstract = param_tree.flatten(storage.of_rules(shapes, rules).abstract())
  stored = orbax_params.leaves(source.run)
  assert {n: (a.shape, a.dtype) for n, a in abstract.items()} == {
    n: (leaf.shape, leaf.dtype) for n, leaf in stored.items()
  }
  with pytest.raises(UserError, match="--quantize=int2 must be one of nf4, int8"):
    restore.rules(source, "int2")


@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
@pytest.mark.parametrize(
  ("params", "name"),
  [
    ([(".*", "train")], "llm/layers/mlp/linear"),
    ([(".*", "train")], "img/head/bias"),
    (QLORA, "lora/llm/layers/attn/q_einsum/w/b"),
    (QLORA, "llm/layers/attn/q_einsum/w/scale_mean"),
    (QLORA, "img/head/kernel/scale"),
  ],
)
def test_numbers_that_are_not_finite_are_named_as_they_are_read(
  tmp_path, root, monkeypatch, params, name, quantize
):
  """By every command that loads weights: evaluate, predict, demo, pgjax.load, train."""
  original = orbax_params.write_params

  def write(folder, arrays, *rest):
    damaged = arrays[name].whole().copy()
    damaged.reshape(-1)[0] = np.nan
    original(folder, arrays | {name: lazy_array.of_array(damaged)}, *rest)

  monkeypatch.setattr(orbax_params, "write_params", write)
  source = source_lib.open_source(small_checkpoint.write(tmp_path / "7", root, params=params))
  named = name if quantize is None or params != QLORA else name.rsplit("/", 1)[0]
  with pytest.raises(UserError, match=rf"{named}.* that are NaN or infinite"):
    restored(source, quantize=quantize)


def as_older_format(folder):
  """Rewrites run.json as versions did that had no checksum of it."""
  path = pathlib.Path(folder, "run.json")
  run = json.loads(path.read_text())
  del run["checksum"]
  path.write_text(json.dumps(run | {"format": 1}))


def test_codes_of_another_order_are_refused(tmp_path, root):
  """Codes of the older format are those of the transposed matrices."""
  quantized = small_checkpoint.write(tmp_path / "7", root, params=QLORA, dtype="bfloat16")
  as_older_format(quantized)
  with pytest.raises(UserError, match="quantized matrices in another order"):
    source_lib.open_source(quantized)
  plain = small_checkpoint.write(tmp_path / "8", root)
  as_older_format(plain)
  assert source_lib.open_source(plain).run is not None
