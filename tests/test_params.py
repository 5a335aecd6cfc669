import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pgjax import params, sharding
from pgjax.errors import UserError

TREE = {
  "llm": {"layers": {"attn": {"w": 1, "out": 2}, "mlp": {"w": 3}}, "final_norm": {"scale": 4}},
  "img": {"head": {"kernel": 5, "bias": 6}, "embedding": {"kernel": 7}},
}
NAMES = list(params.flatten(TREE))


def test_names_are_sorted_paths_and_unflatten_is_the_inverse():
  assert NAMES[:3] == ["img/embedding/kernel", "img/head/bias", "img/head/kernel"]
  assert params.unflatten(params.flatten(TREE)) == TREE


def test_the_first_pattern_that_matches_the_whole_name_wins():
  got = params.rules(
    [("llm/layers/attn/.*", "train"), ("llm/.*", 'freeze("bfloat16")'), (".*", "freeze")], NAMES
  )
  assert got["llm/layers/attn/w"] == ("train", None)
  assert got["llm/layers/mlp/w"] == ("freeze", "bfloat16")
  assert got["img/head/bias"] == ("freeze", None)


def test_a_pattern_must_match_the_whole_name():
  with pytest.raises(UserError, match="no pattern covers 'img/embedding/kernel'"):
    params.rules([("llm", "train"), ("llm/.*", "train")], NAMES)


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    ([("llm/.*", "train")], "no pattern covers 'img/embedding/kernel', 'img/head/bias'"),
    ([("lm/layers/.*", "freeze"), (".*", "train")], r"did you mean 'llm/layers/\.\*'"),
    ([(".*", "train"), ("img/.*", "freeze")], "patterns before it already match"),
    ([("/llm/.*", "freeze"), (".*", "train")], "never start with '/'"),
    ([("llm/(.*", "freeze"), (".*", "train")], "is not a regular expression"),
    ([(".*", "trian")], "unknown value 'trian'"),
    ([(".*", "lora(rank=8)")], "not available yet"),
    ([(".*", 'freeze("nf4")')], "not available yet"),
    ([(".*", 'freeze("float17")')], "unknown dtype 'float17'"),
    ([(".*", "freeze(os.remove('x'))")], "cannot read"),
    ([(".*", None)], "cannot read None"),
  ],
)
def test_mistakes_are_told(patterns, message):
  with pytest.raises(UserError, match=message):
    params.rules(patterns, NAMES)


def test_split_and_merge_are_inverse_and_split_by_rule():
  rules = params.rules([("llm/.*", "train"), (".*", "freeze")], NAMES)
  trained, frozen = params.split(TREE, rules)
  assert sorted(trained.values()) == [1, 2, 3, 4]
  assert sorted(frozen.values()) == [5, 6, 7]
  assert params.merge(trained, frozen) == TREE


def test_freezing_by_schedule_means_the_same_as_params():
  cosine = {"decay_type": "cosine"}
  patterns, rest = params.from_schedule([("img/.*", None), (".*", cosine)])
  assert patterns == [("img/.*", "freeze"), (".*", "train")]
  assert rest == [(".*", cosine)]
  assert params.from_schedule(cosine) == (None, cosine)


def test_table_counts_what_trains_in_each_part_and_shows_sharding():
  tree = {
    "img": {"head": {"kernel": jax.ShapeDtypeStruct((10, 20), jnp.float32)}},
    "llm": {
      "a": jax.ShapeDtypeStruct((8, 100), jnp.bfloat16),
      "b": jax.ShapeDtypeStruct((), jnp.float32),
    },
  }
  mesh = sharding.make_mesh([("data", -1)], jax.devices())
  shard = NamedSharding(mesh, PartitionSpec("data"))
  shardings = {"llm": {"a": shard, "b": sharding.replicated(mesh)}}
  rules = params.rules([("llm/.*", "train"), (".*", "freeze")], params.flatten(tree))
  lines = [line.split() for line in params.table(tree, rules, shardings).splitlines()]
  assert ["llm/a", "train", "8x100", "bfloat16", "1.6", "kB", "[data,", "-]"] in lines
  assert ["llm/b", "train", "scalar", "float32", "4", "B", "replicated"] in lines
  assert ["img/head/kernel", "freeze", "10x20", "float32", "800", "B"] in lines
  assert ["llm", "801", "parameters", "801", "train", "(100.0%)", "1.6", "kB"] in lines
  assert ["img/head", "200", "parameters", "0", "train", "(", "0.0%)", "800", "B"] in lines
  assert ["all", "1,001", "parameters", "801", "train", "(", "80.0%)", "2.4", "kB"] in lines
