"""The axes of a mesh: names, presets, what each splits, and one sentence for what does not fit."""

import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec as P

from configs import common
from pgjax.config import load as config_load, mesh_spec, validate as config_validate
from pgjax.distributed import mesh as mesh_lib, mesh_notes, sharding
from pgjax.errors import UserError
from pgjax.params import of_model, storage, tree as param_tree
from pgjax.planning import gpus, mesh_choice

BASE = "configs/easyvqa.py"


def configured(**fields):
  return config_validate.validated(config_load.load(BASE, fields))


def test_a_preset_is_a_mesh_and_a_strategy():
  sizes = {
    "fsdp": dict(data=16),
    "hsdp": dict(replica=2, data=8),
    "replicated": dict(data=16),
    "tensor": dict(data=2, tensor=8),
    "sequence": dict(data=2, sequence=8),
    "tensor_sequence": dict(data=2, tensor=2, sequence=4),
  }
  assert sizes.keys() == common.STRATEGIES.keys()
  for name, want in sizes.items():
    c = configured(mesh=name)
    assert mesh_spec.sizes(c.mesh, 16, 8) == want
    assert list(c.sharding_strategy) == common.STRATEGIES[name]["sharding_strategy"]
    mesh = AbstractMesh(tuple(want.values()), tuple(want))
    for _, tactic in c.sharding_strategy:
      sharding.parse_tactic(tactic, mesh.shape)
  own = configured(mesh="replicated", sharding_strategy=[("params/.*", 'fsdp("data")')])
  assert list(own.sharding_strategy) == [("params/.*", 'fsdp("data")')]
  assert configured(mesh="auto").mesh == "auto"


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ("tensr", "is no list of pairs .* Did you mean 'tensor'"),
    ("[['model', 2]]", "no axis 'model'. Did you mean 'tensor'"),
    ("[['fsdp', -1]]", "no axis 'fsdp'. Did you mean 'data'"),
    ("[['dta', -1]]", "no axis 'dta'. Did you mean 'data'"),
    ("[['data', -1], ['tensor', -1]]", "at most one size of -1"),
    ("[['data', 'all']]", "size from 1, or -1, or 'host'"),
    ("[[", "cannot be read"),
  ],
)
def test_a_wrong_mesh_is_one_sentence(mesh, message):
  with pytest.raises(UserError, match=message):
    configured(mesh=mesh)


def test_sizes_multiply_to_the_number_of_devices():
  with pytest.raises(UserError, match="does not fit 8 devices"):
    mesh_spec.sizes([("data", 2), ("tensor", 3)], 8, 8)
  with pytest.raises(UserError, match="does not fit 12 devices"):
    mesh_spec.sizes([("data", -1), ("tensor", "host")], 12, 8)


def test_a_batch_is_split_over_replica_and_data_only():
  mesh = mesh_lib.abstract_mesh([("replica", 2), ("data", 2), ("tensor", 2)], 8)
  assert mesh_lib.batch_sharding(mesh).spec == P(("replica", "data"))
  mesh_lib.check_batch_size(4, mesh)
  with pytest.raises(
    UserError, match=r"size=6 .* among 4 devices along replica and data; try 4 or"
  ):
    mesh_lib.check_batch_size(6, mesh)
  with pytest.raises(UserError, match=r"x 2 microbatches; try 8\."):
    mesh_lib.check_batch_size(4, mesh, microbatches=2)
  with pytest.raises(UserError, match=r"\('data', 2\), \('sequence', 4\)"):
    mesh_lib.check_batch_size(2, mesh_lib.abstract_mesh([("data", -1)], 8))


def test_processes_that_share_examples_read_the_same_part():
  """Two hosts of four devices; each row stands for an equal part of the batch."""
  parts = {  # What each process needs -> (part, number of parts, whether it reports answers).
    ((0, 1), (2, 3)): [(0, 2, True), (1, 2, True)],  # data=4, tensor=2
    ((0,), (0,)): [(0, 1, True), (0, 1, False)],  # tensor=8
    ((0, 1), (0, 1)): [(0, 1, True), (0, 1, False)],  # tensor=2, data=2, sequence=2 in this order
  }
  for needed, want in parts.items():
    by_process = dict(enumerate(map(set, needed)))
    assert [tuple(mesh_lib.part_of(by_process, i)) for i in range(2)] == want
  with pytest.raises(UserError, match="in the order replica, data, tensor, sequence"):
    mesh_lib.part_of({0: {0, 2}, 1: {1, 3}}, 0)


TENSOR = {  # The only leaves with a dimension over `tensor`, of any model.
  "llm/embedder/input_embedding": 0,
  "llm/layers/attn/q_einsum/w": 1,
  "llm/layers/attn/kv_einsum/w": 2,
  "llm/layers/attn/attn_vec_einsum/w": 1,
  "llm/layers/mlp/gating_einsum": 3,
  "llm/layers/mlp/linear": 1,
  **{f"attention/{name}/kernel": 2 for name in ("query", "key", "value")},
  **{f"attention/{name}/bias": 1 for name in ("query", "key", "value")},
  "attention/out/kernel": 1,
  "mlp/Dense_0/kernel": 2,
  "mlp/Dense_0/bias": 1,
  "mlp/Dense_1/kernel": 1,
}
SHORT = {"attention": "MultiHeadDotProductAttention_0", "mlp": "MlpBlock_0"}


def long_name(name):
  part, _, rest = name.partition("/")
  return f"img/Transformer/encoderblock/{SHORT[part]}/{rest}" if part in SHORT else name


def dims_over(axis, shardings):
  def dim(s):
    found = [
      i for i, axes in enumerate(s.spec) if axis in ((axes,) if axis == axes else axes or ())
    ]
    assert len(found) < 2
    return found[0] if found else None

  return {n: dim(s) for n, s in param_tree.flatten(shardings).items() if dim(s) is not None}


def test_tensor_splits_heads_hidden_numbers_and_vocabulary_under_every_strategy():
  mesh = mesh_lib.abstract_mesh([("data", 2), ("tensor", 2)], 4)
  model = tiny.model(llm=dict(width=32))
  model = model.clone(img=dict(tiny.IMG, num_heads=4))
  shapes = of_model.param_shapes(model, tiny.RES)
  want = {long_name(name): dim for name, dim in TENSOR.items()}
  state = dict(params=shapes, opt={"0": dict(mu=shapes)})
  state = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, "float32"), state, is_leaf=lambda s: isinstance(s, tuple)
  )
  for tactic in ('fsdp("data", 0)', "replicate", 'fsdp(["data", "sequence"], 0)'):
    found = sharding.shardings([(".*", tactic)], state, mesh)
    assert dims_over("tensor", found["params"]) == want
    assert dims_over("tensor", found["opt"]["0"]["mu"]) == want
  over_data = sharding.shardings(tiny.FSDP, state, mesh)["params"]
  assert over_data["llm/embedder/input_embedding"].spec == P(("tensor", "data"), None)
  assert over_data["llm/layers/mlp/gating_einsum"].spec == P(None, None, None, ("tensor", "data"))
  own = sharding.shardings([(".*/linear", 'shard_dim("tensor", 2)')], state, mesh)["params"]
  assert own["llm/layers/mlp/linear"].spec == P(None, None, ("tensor",))


def test_factors_and_codes_are_split_as_their_matrix():
  mesh = mesh_lib.abstract_mesh([("tensor", 2)], 2)
  patterns = [("llm/layers/mlp/.*", 'lora(rank=2, base="nf4")'), (".*", "lora(rank=2)")]
  leaves = storage.of(of_model.param_shapes(tiny.model(), tiny.RES), patterns, "float32")
  found = sharding.shardings([], {"params": leaves.abstract()}, mesh)["params"]
  dims = dims_over("tensor", found)
  mlp, attn = "llm/layers/mlp/linear", "llm/layers/attn/attn_vec_einsum/w"
  assert dims[f"{mlp}/nf4"] == dims[f"{mlp}/scale"] == 1
  assert dims[f"lora/{mlp}/a"] == 1  # [L, F, R]
  assert f"lora/{mlp}/b" not in dims  # [L, R, D]
  assert dims[f"lora/{attn}/a"] == 1  # [L, N, H, R]
  assert dims["lora/llm/layers/mlp/gating_einsum/b"] == 3  # [L, 2, R, F]
  place = sharding.for_products(f"{mlp}/nf4", (2, 64), mesh)
  assert place == NamedSharding(mesh, P())


def test_what_an_axis_does_not_divide_is_said():
  config, model = tiny.config(), tiny.model()  # 4 heads, 2 key/value heads; 3 image heads.

  def said(**axes):
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    return " ".join(mesh_notes.notes(model, config, mesh))

  assert said(data=8) == ""
  assert re.fullmatch(
    r"tensor=2 does not divide the image tower's 3 heads: [^:]*\.", said(tensor=2)
  )
  assert "2 key/value heads: there are 2 copies of each" in said(tensor=4)
  assert "text tower's 4 heads: its attention is computed whole" in said(tensor=8)
  assert said(sequence=4) == ""
  assert "8 does not divide the 4 patches" in said(sequence=8)
  assert "12 tokens of image and text: 4 of padding" in said(sequence=8)
  for axes, message in ((dict(tensor=3), "splits? nothing"), (dict(sequence=16), "12 tokens")):
    with pytest.raises(UserError, match=message):
      said(**axes)


def chosen(costs, limit=None, **fields):
  cluster = mesh_choice.Cluster(8, 8, gpus.GPUS["H100"], limit)
  cost = lambda config, mesh: costs.get(  # noqa: E731
    "x".join(str(mesh[a]) for a in ("data", "tensor", "sequence")), (100, 100)
  )
  return mesh_choice.choose(configured(mesh="auto", **fields), cluster, cost)


def test_auto_takes_the_fastest_mesh_that_fits_and_says_why():
  costs = {"8x1x1": (5, 2.0), "4x2x1": (4, 1.0), "4x1x2": (4, 1.01), "2x4x1": (1, 1.5)}
  choice = chosen(costs)
  assert choice.mesh == [("data", 4), ("sequence", 2)]  # As fast, and simpler than `tensor`.
  assert choice.sharding_strategy == common.STRATEGIES["sequence"]["sharding_strategy"]
  assert 'config.mesh="auto" is data=4, sequence=2' in choice.why
  assert chosen(costs, limit=2).mesh == [("data", 2), ("tensor", 4)]
  none = chosen(costs, limit=0.5)
  assert none.mesh == [("data", 2), ("tensor", 4)]
  assert "fits" in none.why
  few = chosen(costs, **{"input.batch_size": 4})
  assert all(4 % (c.mesh["replica"] * c.mesh["data"]) == 0 for c in few.candidates)
  assert "smaller than the number of devices" in few.why
  halved = chosen(costs, **{"input.batch_size": 4, "microbatches": 2}).candidates
  assert max(c.mesh["data"] for c in halved) == 2


def test_auto_estimates_without_compiling():
  config = config_load.overridden(
    configured(mesh="auto"), {"input.batch_size": 2, "model.llm.num_kv_heads": 4}
  )
  cluster = mesh_choice.Cluster(8, 8, gpus.GPUS["H100"], 80e9)
  choice = mesh_choice.choose(config, cluster)
  assert np.prod([size for _, size in choice.mesh]) == 8
  assert dict(choice.mesh)["data"] <= 2
  assert mesh_choice.with_mesh(config, choice).mesh == choice.mesh
