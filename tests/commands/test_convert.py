"""Weights through every format and back: the same bits, or one sentence and nothing left behind."""

import errno
import json
import pathlib
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pgjax import cli, convert, disk
from pgjax.checkpoints import initial, source as source_lib, verify
from pgjax.data import tokenizer
from pgjax.errors import UserError
from pgjax.formats import lazy_array, safetensors
from pgjax.huggingface import names as hf_names
from pgjax.models import paligemma, paligemma as paligemma_lib
from pgjax.params import of_model, storage, tree as param_tree

IMG = dict(variant="custom", width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=14)
SIZES = dict(variant="custom", width=32, depth=3, mlp_dim=48, head_dim=16)
GEMMA2 = dict(post_norms=True, attn_logits_softcap=50.0)
LLM = {
  "gemma1": dict(SIZES, num_heads=4, num_kv_heads=1),
  "gemma2": dict(SIZES, num_heads=4, num_kv_heads=2, final_logits_softcap=30.0, **GEMMA2),
  "heads_of_their_own": dict(SIZES, num_heads=2, num_kv_heads=2, **GEMMA2),
  "scaled_like_27b": dict(
    SIZES, num_heads=4, num_kv_heads=2, query_pre_attn_norm="rsqrt_emb_per_head", **GEMMA2
  ),
  "odd": dict(SIZES, width=36, depth=1, mlp_dim=50, head_dim=6, num_heads=6, num_kv_heads=3),
}
RES = 42  # 3 x 3 patches.


def random_leaves(llm, dtype=np.float32, seed=0):
  """All parameters of a model with these fields, random, by name."""
  shapes = of_model.param_shapes(paligemma.Model(img=IMG, llm=llm), RES)
  rng = np.random.default_rng(seed)
  return {
    name: lazy_array.of_array(rng.normal(0, 0.3, shape).astype(dtype))
    for name, shape in shapes.items()
  }


def source(llm, dtype=np.float32, **fields):
  """A checkpoint in memory, with the tiny tokenizer."""
  original = source_lib.Source(
    name="memory",
    path=pathlib.Path("memory"),
    kind="orbax",
    leaves=random_leaves(llm, dtype),
    model=dict(img=IMG, llm=llm),
    res=RES,
    tokenizer=tokenizer.TINY.read_bytes(),
    image_token=None,
    run=None,
  )
  return original._replace(**fields)


def vocabulary(llm, rows=1792):
  return dict(llm, vocab_size=rows)


def run(*argv):
  """python -m pgjax.convert with these flags; the exit status."""
  args = cli.parse(["convert", *argv], convert.FLAGS, "none")
  return convert.main(args)


def arrays(path):
  """{our name: array} of any checkpoint."""
  return {name: leaf.whole() for name, leaf in source_lib.open_source(str(path)).leaves.items()}


def assert_same_bits(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    assert a[name].shape == b[name].shape, name
    assert a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture
def saved(tmp_path):
  """(folder in pgjax's own format, what is in it) of a model with these fields."""

  def save(llm, dtype=np.float32, rows=1792, **fields):
    original = source(vocabulary(llm, rows), dtype, **fields)
    path = tmp_path / "saved"
    convert.WRITERS["orbax"](path, original, original.leaves)
    return path, {name: leaf.whole() for name, leaf in original.leaves.items()}

  return save


@pytest.mark.parametrize(
  ("llm", "dtype"),
  [
    # Half a minute each: one is enough between two changes.
    pytest.param(llm, dtype, id=f"{name}-{dtype.__name__}", marks=() if fast else pytest.mark.long)
    for name, llm in LLM.items()
    for dtype in (np.float32, ml_dtypes.bfloat16)
    for fast in [(name, dtype) == ("gemma2", ml_dtypes.bfloat16)]
  ],
)
def test_a_round_trip_gives_the_same_bits(saved, tmp_path, llm, dtype, capsys):
  """orbax -> hf -> orbax -> bv -> hf; the last step is verified by the program itself, too."""
  path, values = saved(llm, dtype)
  for to, name in (("hf", "a"), ("orbax", "b"), ("bv", "c.npz"), ("hf", "d")):
    target = tmp_path / name
    verified = ["--verify"] if name == "d" else []
    assert run(f"--src={path}", f"--dst={target}", f"--to={to}", *verified) == 0
    assert_same_bits(arrays(target), values)
    before, after = (source_lib.open_source(str(p)) for p in (path, target))
    assert paligemma.Model(**after.model).llm_config == paligemma.Model(**before.model).llm_config
    assert paligemma.Model(**after.model).img_config == paligemma.Model(**before.model).img_config
    words = [tokenizer.Tokenizer(s.tokenizer, s.name).words() for s in (before, after)]
    assert words[0] == words[1]  # A Hugging Face folder's file has the boxes too.
    path = target
  output = capsys.readouterr().out
  assert output.count("largest difference 0") == 1
  assert "DIFFERENT" not in output
  assert not list(tmp_path.glob(".unfinished*"))


def test_shards_are_as_large_as_asked_and_read_as_one(saved, tmp_path, monkeypatch):
  path, values = saved(LLM["gemma2"])
  monkeypatch.setattr(safetensors.write_safetensors, "__defaults__", (300_000,))
  assert run(f"--src={path}", f"--dst={tmp_path / 'hf'}", "--to=hf") == 0
  files = sorted((tmp_path / "hf").glob("*.safetensors"))
  assert len(files) >= 2
  assert all(f.stat().st_size < 330_000 for f in files)
  index = json.loads((tmp_path / "hf" / safetensors.INDEX).read_text())
  assert set(index["weight_map"].values()) == {f.name for f in files}
  assert_same_bits(arrays(tmp_path / "hf"), values)


def test_rounding_is_to_nearest_even_and_reported(saved, tmp_path, capsys):
  path, values = saved(LLM["gemma1"])
  assert run(f"--src={path}", f"--dst={tmp_path}/x.npz", "--to=bv", "--dtype=bfloat16") == 0
  assert (
    "32 arrays are cast from float32 to bfloat16, rounded to nearest even"
    in capsys.readouterr().out
  )
  for name, array in arrays(tmp_path / "x.npz").items():
    bits = values[name].view(np.uint32).astype(np.uint64)  # By hand, on the bits.
    expected = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.testing.assert_array_equal(array.view(np.uint16), expected.astype(np.uint16), name)


@pytest.mark.long
def test_float16_overflow_raises(saved, tmp_path):
  path, values = saved(LLM["gemma1"])
  leaves = {n: lazy_array.of_array(a) for n, a in values.items()}
  values["llm/final_norm/scale"][3] = 1e6
  big = source(vocabulary(LLM["gemma1"]), leaves=leaves)
  convert.WRITERS["orbax"](tmp_path / "big", big, leaves)
  with pytest.raises(
    UserError, match=r"llm/final_norm/scale has a value of 1e\+06, which does not"
  ):
    run(f"--src={tmp_path / 'big'}", f"--dst={tmp_path}/hf", "--to=hf", "--dtype=float16")
  assert not (tmp_path / "hf").exists()
  assert not list(tmp_path.glob(".unfinished*"))
  assert run(f"--src={path}", f"--dst={tmp_path}/hf", "--to=hf", "--dtype=float16", "--verify") == 0


@pytest.mark.long
def test_hugging_faces_token_rows_are_dropped_and_restored(tmp_path, capsys):
  llm = vocabulary(LLM["gemma2"], 1792 + 64)
  original = source(llm, image_token=1792)
  convert.WRITERS["orbax"](tmp_path / "o", original, original.leaves)
  values = arrays(tmp_path / "o")
  for src, dst, to in (("o", "hf", "hf"), ("hf", "o2", "orbax"), ("o2", "x.npz", "bv")):
    assert run(f"--src={tmp_path / src}", f"--dst={tmp_path / dst}", f"--to={to}", "--verify") == 0
    if to != "bv":
      assert_same_bits(arrays(tmp_path / dst), values)
  assert "last 64 rows (Hugging Face's <image> and padding) are dropped" in capsys.readouterr().out
  values[paligemma_lib.TOKEN_TABLE] = values[paligemma_lib.TOKEN_TABLE][:1792]
  assert_same_bits(arrays(tmp_path / "x.npz"), values)
  assert run(f"--src={tmp_path}/x.npz", f"--dst={tmp_path}/hf2", "--to=hf", "--verify") == 0
  assert "gets 64 rows of zeros" in capsys.readouterr().out
  assert_same_bits(arrays(tmp_path / "hf2"), values)  # Rows of zeros are not the model's.
  table = hf_table(tmp_path / "hf2")
  np.testing.assert_array_equal(table, np.pad(values[paligemma_lib.TOKEN_TABLE], ((0, 64), (0, 0))))


def hf_table(folder):
  """The token table in a Hugging Face folder."""
  tensors = safetensors.read_safetensors(folder)
  return tensors["language_model.model.embed_tokens.weight"].whole()


@pytest.mark.parametrize("rows", [1792, 2000])
def test_a_folder_has_a_row_for_the_image_token(saved, tmp_path, rows):
  """transformers 4.47 and vLLM look the token up, whatever the vocabulary."""
  path, values = saved(LLM["gemma1"], rows=rows)
  assert run(f"--src={path}", f"--dst={tmp_path / 'hf'}", "--to=hf", "--verify") == 0
  config = json.loads((tmp_path / "hf/config.json").read_text())
  table = hf_table(tmp_path / "hf")
  assert config["image_token_index"] == 1792
  assert len(table) == config["vocab_size"] == config["text_config"]["vocab_size"]
  assert len(table) == (1792 + 64 if rows == 1792 else rows)
  np.testing.assert_array_equal(table[:rows], values[paligemma_lib.TOKEN_TABLE])
  for to, name in (("orbax", "o"), ("bv", "x.npz")):
    assert run(f"--src={tmp_path / 'hf'}", f"--dst={tmp_path / name}", f"--to={to}") == 0
    assert_same_bits(arrays(tmp_path / name), values)


def test_a_bare_npz_is_identified_by_its_shapes(tmp_path, capsys):
  """As big_vision's trainer or the Colab write it: no file next to it, with or without a prefix."""
  original = source(vocabulary(LLM["gemma2"]), ml_dtypes.bfloat16)
  np.savez(tmp_path / "w.npz", **{n: leaf.whole() for n, leaf in original.leaves.items()})
  opened = source_lib.open_source(str(tmp_path / "w.npz"))
  assert opened.res == RES
  assert paligemma.Model(**opened.model).llm_config == paligemma.Model(**original.model).llm_config
  assert run(f"--src={tmp_path}/w.npz", f"--dst={tmp_path}/hf", "--to=hf") == 0
  assert "taken: 30, as Gemma 2 was trained" in capsys.readouterr().out
  assert run(f"--src={tmp_path}/w.npz", f"--dst={tmp_path}/hf0", "--to=hf", "--softcap=0") == 0
  caps = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("hf", "hf0")]
  assert [c["text_config"]["final_logit_softcapping"] for c in caps] == [30.0, None]


@pytest.mark.parametrize(("name", "millions"), [("gemma2_9b", 9662), ("gemma2_27b", 27650)])
def test_the_table_covers_the_large_models(name, millions):
  """9.66 and 27.7 billion parameters, as in the paper; each leaf is in one row."""
  model = paligemma.Model(img=dict(variant="So400m/14"), llm=dict(variant=name))
  shapes = of_model.param_shapes(model, 224)
  assert {row.name for row in hf_names.table(shapes)} == set(shapes)
  assert round(sum(np.prod(s) for s in shapes.values()) / 1e6) == millions
  theirs = hf_names.hf_shapes(shapes)
  assert sum(np.prod(s) for s in theirs.values()) == sum(np.prod(s) for s in shapes.values())


def test_verify_notices_one_bit_and_another_scale(saved):
  path, values = saved(LLM["gemma2"])
  opened = source_lib.open_source(str(path))
  table, same = verify.compare(opened.leaves, opened, opened)
  assert same, table
  changed = {name: array.copy() for name, array in values.items()}
  changed["llm/layers/mlp/linear"].view(np.uint32)[0, 0, 0] ^= 1
  copy = opened._replace(leaves={n: lazy_array.of_array(a) for n, a in changed.items()})
  table, same = verify.compare(opened.leaves, opened, copy)
  assert not same
  assert [line.split()[0] for line in table.splitlines() if "DIFFERENT" in line] == [
    "llm/layers/mlp/linear"
  ]
  llm = dict(opened.model["llm"], query_pre_attn_norm="rsqrt_emb_per_head")
  copy = opened._replace(model=dict(opened.model, llm=llm))  # The same arrays, another model.
  assert not verify.compare(opened.leaves, opened, copy)[1]


def test_verify_computes_the_models_logits(saved):
  """Layer by layer, from the file, against the whole model at once."""
  path, values = saved(LLM["gemma2"])
  opened = source_lib.open_source(str(path))
  image, tokens = verify.example(opened)
  ours = verify.logits(opened.leaves, opened)
  mask = np.arange(len(tokens)) >= verify.PREFIX
  model = paligemma.Model(**opened.model)
  tree = param_tree.unflatten({name: jnp.asarray(array) for name, array in values.items()})
  arrays = (jnp.asarray(a) for a in (image, tokens[None], mask[None].astype(np.int32)))
  theirs, _ = model.apply({"params": tree}, *arrays)
  np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_difference_leaves_nothing(saved, tmp_path, monkeypatch, capsys):
  path, _ = saved(LLM["gemma1"])
  monkeypatch.setattr(verify, "compare", lambda *_: ("a table", False))
  assert run(f"--src={path}", f"--dst={tmp_path}/x.npz", "--to=bv", "--verify") == 1
  assert "is not written" in capsys.readouterr().out
  assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


def safetensors_header(folder, change):
  """Rewrites the header of a folder's only file."""
  path = folder / "model.safetensors"
  data = path.read_bytes()
  (size,) = struct.unpack("<Q", data[:8])
  header = json.loads(data[8 : 8 + size])
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def rename(old, new):
  return lambda header: header.__setitem__(new, header.pop(old))


NORM = "language_model.model.norm.weight"
EMPTY = dict(shape=[0], data_offsets=[0, 0])
HF_DAMAGE = {
  "a header of 2^60 bytes": (
    lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "a header of 1,152,921,504,606,846,976 bytes",
  ),
  "a truncated file": (
    lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
    "ends beyond the end of the file",
  ),
  "an empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged"),
  "a header that is no JSON": (
    lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{"),
    "damaged",
  ),
  "negative offsets": (
    lambda f: safetensors_header(f, lambda h: h[NORM].update(data_offsets=[-4, 4])),
    "damaged",
  ),
  "a shape that does not fit its bytes": (
    lambda f: safetensors_header(f, lambda h: h[NORM].update(shape=[1 << 40])),
    "does not hold the",
  ),
  "integers": (
    lambda f: safetensors_header(f, lambda h: h[NORM].update(dtype="I32")),
    "holds I32; weights are one of",
  ),
  "a missing tensor": (lambda f: safetensors_header(f, lambda h: h.pop(NORM)), f"missing: {NORM}"),
  "an unused tensor": (
    lambda f: safetensors_header(f, lambda h: h.update({"lora.w": h[NORM] | EMPTY})),
    "unexpected: lora.w",
  ),
  "no config": (
    lambda f: (f / "config.json").unlink(),
    "has .safetensors files and no config.json",
  ),
  "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
  "another model": (
    lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
    "is not 'paligemma'",
  ),
}


@pytest.mark.parametrize("what", HF_DAMAGE)
def test_a_damaged_hugging_face_folder_raises_one_sentence(saved, tmp_path, what):
  path, _ = saved(LLM["gemma1"])
  folder = tmp_path / "hf"
  assert run(f"--src={path}", f"--dst={folder}", "--to=hf") == 0
  damage, message = HF_DAMAGE[what]
  damage(folder)
  with pytest.raises(UserError) as error:
    run(f"--src={folder}", f"--dst={tmp_path}/x.npz", "--to=bv")
  assert message in str(error.value)
  assert "\n" not in str(error.value)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "saved"]


def test_missing_and_misplaced_shards_raise(saved, tmp_path, monkeypatch):
  path, _ = saved(LLM["gemma1"])
  monkeypatch.setattr(safetensors.write_safetensors, "__defaults__", (300_000,))
  folder = tmp_path / "hf"
  assert run(f"--src={path}", f"--dst={folder}", "--to=hf") == 0
  index = folder / safetensors.INDEX
  whole = json.loads(index.read_text())
  first = sorted(set(whole["weight_map"].values()))[0]
  (folder / first).rename(tmp_path / "elsewhere.safetensors")
  with pytest.raises(UserError, match=f"names {first}, which is missing"):
    source_lib.open_source(str(folder))
  (tmp_path / "elsewhere.safetensors").rename(folder / first)
  for bad, message in (
    ({**whole["weight_map"], NORM: "../elsewhere.safetensors"}, "not a file of this folder"),
    ({**whole["weight_map"], "language_model.x": first}, "names tensors that are in none"),
  ):
    index.write_text(json.dumps(dict(weight_map=bad)))
    with pytest.raises(UserError, match=message):
      source_lib.open_source(str(folder))
  index.write_text("[]")
  with pytest.raises(UserError, match=r"index.json: \$ is \[\]; expected `object`"):
    source_lib.open_source(str(folder))


def test_untied_output_weights_are_refused_and_tied_ones_dropped(saved, tmp_path):
  path, values = saved(LLM["gemma1"])
  folder = tmp_path / "hf"
  assert run(f"--src={path}", f"--dst={folder}", "--to=hf") == 0
  written = safetensors.read_safetensors(folder)
  shapes = {name: array.shape for name, array in values.items()}
  table = written["language_model.model.embed_tokens.weight"]
  shapes[paligemma_lib.TOKEN_TABLE] = table.shape  # With rows for <image>.
  values[paligemma_lib.TOKEN_TABLE] = table.whole()
  tied = hf_names.from_hf({**written, "lm_head.weight": table}, shapes)
  assert_same_bits({n: leaf.whole() for n, leaf in tied.items()}, values)
  other = lazy_array.of_array(table.whole() + 1)
  with pytest.raises(UserError, match="differs from embed_tokens"):
    hf_names.from_hf({**written, "lm_head.weight": other}, shapes)


SPELLINGS = {
  "on the hub, and on disk up to 4.57": lambda n: n,
  "in memory since 4.52": lambda n: (
    "model." + n.replace("language_model.model.", "language_model.")
  ),
  "on disk since 5.0": lambda n: n.replace("vision_tower.vision_model.", "vision_tower."),
  "in memory since 5.0": lambda n: (
    "model."
    + n.replace("language_model.model.", "language_model.").replace(
      "vision_tower.vision_model.", "vision_tower."
    )
  ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_transformers_is_read(spelling):
  leaves = random_leaves(vocabulary(LLM["gemma2"]))
  shapes = {name: leaf.shape for name, leaf in leaves.items()}
  spelled = {
    SPELLINGS[spelling](t.name): lazy_array.of_array(np.concatenate(list(t.blocks())))
    for t in hf_names.to_hf(leaves)
  }
  read = hf_names.from_hf(spelled, shapes)
  assert_same_bits(*({n: leaf.whole() for n, leaf in a.items()} for a in (read, leaves)))


def test_names_and_shapes_are_those_of_transformers(root):
  """tests/golden/hf_keys_*.txt: name, shape and dtype of every tensor of two small models."""
  for version, llm in (("1", dict(num_kv_heads=1)), ("2", dict(num_kv_heads=2, **GEMMA2))):
    img = dict(IMG, width=32, mlp_dim=64, num_heads=2)
    llm |= dict(variant="custom", width=64, depth=2, mlp_dim=128, num_heads=4, head_dim=16)
    lines = (root / f"tests/golden/hf_keys_paligemma{version}.txt").read_text().splitlines()
    expected = {n: tuple(json.loads(s)) for n, s, _ in (line.split("\t") for line in lines)}
    shapes = of_model.param_shapes(paligemma.Model(img=img, llm=dict(llm, vocab_size=300)), 28)
    assert hf_names.hf_shapes(shapes) == expected


def test_an_npz_that_is_not_a_paligemma_raises(tmp_path):
  leaves = {n: leaf.whole() for n, leaf in random_leaves(vocabulary(LLM["gemma1"])).items()}
  path = tmp_path / "w.npz"
  for changed, message in (
    ({n: a for n, a in leaves.items() if n != "llm/final_norm/scale"}, "missing: llm/final_norm"),
    ({**leaves, "llm/extra": np.zeros(3, np.float32)}, "unexpected: llm/extra"),
    ({"x": np.zeros(3, np.float32)}, "does not hold a PaliGemma"),
  ):
    np.savez(path, **changed)
    with pytest.raises(UserError, match=message):
      source_lib.open_source(str(path))
  np.savez(path, **leaves, x=np.array([{}], dtype=object))
  with pytest.raises(UserError, match="holds Python objects, which are never read"):
    source_lib.open_source(str(path))
  np.savez(path, **leaves)
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(UserError, match=r"damaged or no .npz file"):
    source_lib.open_source(str(path))


@pytest.mark.parametrize("to", ["hf", "bv", "orbax"])
def test_a_disk_that_fills_up_leaves_nothing(saved, tmp_path, monkeypatch, to):
  path, _ = saved(LLM["gemma1"])
  target = tmp_path / ("x.npz" if to == "bv" else "x")
  with monkeypatch.context() as patch:
    patch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"needs 0\.\d+ GB and its disk has 1e-06 GB free"):
      run(f"--src={path}", f"--dst={target}", f"--to={to}")
  writer = convert.WRITERS[to]

  def fills_up(*args):
    writer(*args)
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setitem(convert.WRITERS, to, fills_up)
  with pytest.raises(UserError, match=r"could not be written .No space left on device.; nothing"):
    run(f"--src={path}", f"--dst={target}", f"--to={to}")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--to=gguf"], "--to=gguf must be one of hf, bv, orbax"),
    (["--to=hf", "--dtype=int4"], "--dtype=int4 must be one of"),
    (["--to=bv"], "end the name with .npz"),
    (["--to=orbax", "--push=a/b"], "--push uploads folders of --to=hf and --to=peft"),
    (["--to=peft"], "saved has none"),
    (["--to=hf", "--merge"], "--merge is for adapters"),
    (["--to=hf", "--base=pt_224"], "--base is for adapters"),
    (["--to=peft", "--merge"], "--merge makes full weights"),
    (["--to=hf", "--src=nowhere"], "There is no checkpoint 'nowhere'"),
    (["--to=hf", "--step=3"], "is the folder of one step"),
  ],
)
def test_wrong_flags_raise_before_anything_is_read(saved, tmp_path, flags, message):
  path, _ = saved(LLM["gemma1"])
  with pytest.raises(UserError, match=message):
    run(f"--src={path}", f"--dst={tmp_path / 'x'}", *flags)
  (tmp_path / "there").mkdir()
  (tmp_path / "there" / "file").touch()
  with pytest.raises(UserError, match="exists already"):
    run(f"--src={path}", f"--dst={tmp_path / 'there'}", "--to=hf")


def test_a_folder_is_pushed_when_it_is_complete(saved, tmp_path, monkeypatch):
  huggingface_hub = pytest.importorskip("huggingface_hub")
  path, _ = saved(LLM["gemma1"])
  pushed = {}
  monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo, **_: None)

  def upload(repo_id, folder_path):
    pushed[repo_id] = sorted(p.name for p in pathlib.Path(folder_path).iterdir())

  monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
  flags = (f"--src={path}", "--to=hf", "--push=me/mine")
  assert run(*flags, f"--dst={tmp_path / 'a'}") == 0
  assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(pushed["me/mine"])

  def refused(**_):
    raise RuntimeError("403 Forbidden")

  monkeypatch.setattr(huggingface_hub, "upload_folder", refused)
  with pytest.raises(UserError, match=r"--push=me/mine failed \(403 Forbidden\); .* is complete"):
    run(*flags, f"--dst={tmp_path / 'b'}")
  assert (tmp_path / "b" / "config.json").is_file()


def test_a_compressed_npz_is_read_too(tmp_path):
  original = source(vocabulary(LLM["gemma1"]))
  values = {n: leaf.whole() for n, leaf in original.leaves.items()}
  np.savez_compressed(tmp_path / "w.npz", **values)
  with zipfile.ZipFile(tmp_path / "w.npz") as file:
    assert file.infolist()[0].compress_type == zipfile.ZIP_DEFLATED
  assert_same_bits(arrays(tmp_path / "w.npz"), values)


def test_training_starts_from_any_format(saved, tmp_path):
  """model_init: the same arrays on the mesh from each."""
  path, values = saved(LLM["gemma2"])
  for to in ("hf", "bv"):
    assert (
      run(f"--src={path}", f"--dst={tmp_path}/x{'.npz' if to == 'bv' else ''}", f"--to={to}") == 0
    )
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def place(a):
    axis = next((i for i, n in enumerate(a.shape) if n % 8 == 0), None)
    spec = [None] * a.ndim
    if axis is not None:
      spec[axis] = "data"
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a)) for n, a in values.items()}
  plain = storage.of({n: a.shape for n, a in values.items()}, [(".*", "train")], "float32")
  for name in (path, tmp_path / "x", tmp_path / "x.npz"):
    loaded = param_tree.flatten(
      initial.load_initial(str(name), param_tree.unflatten(shapes), plain)
    )
    assert_same_bits({n: np.asarray(a) for n, a in loaded.items()}, values)
