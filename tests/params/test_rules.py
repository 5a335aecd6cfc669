import warnings

import jax
import jax.numpy as jnp
import pytest

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.errors import UserError
from pgjax.params import (
  names as param_names,
  rules as param_rules,
  storage,
  table as param_table,
  tree as param_tree,
)

TREE = {
  "llm": {"layers": {"attn": {"w": 1, "out": 2}, "mlp": {"w": 3}}, "final_norm": {"scale": 4}},
  "img": {"head": {"kernel": 5, "bias": 6}, "embedding": {"kernel": 7}},
}
NAMES = list(param_tree.flatten(TREE))


def test_names_are_sorted_paths_and_unflatten_is_the_inverse():
  assert NAMES[:3] == ["img/embedding/kernel", "img/head/bias", "img/head/kernel"]
  assert param_tree.unflatten(param_tree.flatten(TREE)) == TREE


def test_the_first_pattern_that_matches_the_whole_name_wins():
  got = param_rules.rules(
    [("llm/layers/attn/.*", "train"), ("llm/.*", 'freeze("bfloat16")'), (".*", "freeze")], NAMES
  )
  assert got["llm/layers/attn/w"][:2] == ("train", None)
  assert got["llm/layers/mlp/w"][:2] == ("freeze", "bfloat16")
  assert got["img/head/bias"][:2] == ("freeze", None)


def test_a_pattern_must_match_the_whole_name():
  with pytest.raises(UserError, match="no pattern covers 'img/embedding/kernel'"):
    param_rules.rules([("llm", "train"), ("llm/.*", "train")], NAMES)


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    ([("llm/.*", "train")], "no pattern covers 'img/embedding/kernel', 'img/head/bias'"),
    ([("lm/layers/.*", "freeze"), (".*", "train")], r"Did you mean 'llm/layers/\.\*'"),
    ([(".*", "train"), ("img/.*", "freeze")], "patterns before it already match"),
    ([("/llm/.*", "freeze"), (".*", "train")], "never start with '/'"),
    ([("llm/(.*", "freeze"), (".*", "train")], "is not a regular expression"),
    ([(".*", "trian")], "no 'trian'. Did you mean 'train'"),
    ([(".*", 'freeze("float17")')], "dtype must be one of 'float32', .*, not \"float17\""),
    ([(".*", "freeze(os.remove('x'))")], "dtype must be"),
    ([(".*", None)], "None must be text"),
  ],
)
def test_mistakes_raise(patterns, message):
  with pytest.raises(UserError, match=message):
    param_rules.rules(patterns, NAMES)


def test_split_and_merge_are_inverse_and_split_by_rule():
  rules = param_rules.rules([("llm/.*", "train"), (".*", "freeze")], NAMES)
  trained, frozen = param_tree.split(TREE, param_rules.trained_names(rules))
  assert sorted(trained.values()) == [1, 2, 3, 4]
  assert sorted(frozen.values()) == [5, 6, 7]
  assert param_tree.merge(trained, frozen) == TREE


def test_freezing_by_schedule_equals_params():
  cosine = {"decay_type": "cosine"}
  patterns, rest = param_rules.from_schedule([("img/.*", None), (".*", cosine)])
  assert patterns == [("img/.*", "freeze"), (".*", "train")]
  assert rest == [(".*", cosine)]
  assert param_rules.from_schedule(cosine) == (None, cosine)


def test_table_shows_trainable_parameters_storage_and_sharding():
  shapes = {
    "img/Transformer/encoder_norm/bias": (10,),
    "img/head/kernel": (10, 20),
    "llm/layers/mlp/linear": (2, 64, 96),
    "llm/layers/mlp/gating_einsum": (2, 2, 96, 64),
    "llm/embedder/input_embedding": (80, 96),
  }
  patterns = [
    ("llm/layers/mlp/linear", 'lora(rank=2, alpha=6, dropout=0.1, base="bfloat16")'),
    ("llm/layers/mlp/.*", 'lora(4, base="nf4", rslora=True)'),
    ("llm/.*", 'freeze("bfloat16")'),
    ("img/head/.*", "train"),
    (".*", "freeze"),
  ]
  shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  leaves = storage.StoredParams(shapes, param_rules.rules(patterns, shapes))
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices())
  stored = leaves.abstract()
  places = sharding.shardings([("llm/.*", 'shard_dim("data", 1)')], stored, mesh)
  stored = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), stored, places
  )
  lines = [" ".join(line.split()) for line in param_table.table(stored, leaves).splitlines()]
  lora, qlora = 2 * 2 * (64 + 96), 2 * 2 * 4 * (96 + 64)
  nf4 = 2 * 2 * 96 * (32 + 4)
  assert "img/head/kernel train 10x20 float32 800 B 200 replicated" in lines
  assert (
    "llm/layers/mlp/linear lora rank 2, alpha 6, dropout 0.1 2x64x96 bfloat16"
    f" {(2 * 2 * 64 * 96 + 4 * lora) / 1e3:.1f} kB {lora} [-, data, -]" in lines
  )
  assert (
    f"llm/layers/mlp/gating_einsum lora rank 4, alpha 8, rslora 2x2x96x64 nf4"
    f" {(nf4 + 4 * qlora) / 1e3:.1f} kB {qlora:,} [-, data]" in lines
  )
  assert "llm/embedder/input_embedding freeze 80x96 bfloat16 15.4 kB 0 [-, data]" in lines
  assert "vision 10 parameters 0 train ( 0.00%) 40 B" in lines
  assert "connector 200 parameters 200 train (100.00%) 800 B" in lines
  total = 2 * 64 * 96 + 4 * 96 * 64 + 80 * 96
  share = 100 * (lora + qlora) / total
  assert any(
    line.startswith(f"decoder {total:,} parameters {lora + qlora:,} train ({share:5.2f}%)")
    and line.endswith(f"{lora + qlora:,} of them in adapters of 2 matrices")
    for line in lines
  )


def test_a_pattern_of_any_length_is_read_at_once_or_raises():
  with pytest.raises(UserError, match="up to 2000 characters, not 20000"):
    param_names.compile_pattern("[]{9}" * 4000)
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # Python warns of each "[[", in what a user typed on purpose.
    assert param_names.compile_pattern("llm/[[a]").fullmatch("llm/[")
