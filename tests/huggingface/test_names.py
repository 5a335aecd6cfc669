"""Initial weights: the written arrays are read on any mesh, and mismatches raise."""

import zipfile
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import huggingface_hub.errors
import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pgjax.checkpoints import initial as initial_lib, resolve
from pgjax.errors import UserError
from pgjax.params import storage, tree as param_tree


def tree(dtype=np.float32, patches=4, rows=24, width=8):
  """A small model's leaves, random, under the names that have rules of their own and others."""
  rng = np.random.default_rng(0)
  flat = {
    "img/pos_embedding": rng.normal(size=(1, patches, 16)),
    "img/head/kernel": rng.normal(size=(16, width)),
    "llm/embedder/input_embedding": rng.normal(size=(rows, width)),
    "llm/layers/mlp/linear": rng.normal(size=(3, 32, width)),
    "llm/final_norm/scale": rng.normal(size=width),
  }
  return {name: a.astype(dtype) for name, a in flat.items()}


def load(spec, like, dtype=np.float32, parts=("data",)):
  """load_initial onto eight devices; dim 1 (where it divides) is sharded."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def place(a):
    sharded = a.ndim > 1 and a.shape[1] % 8 == 0
    return NamedSharding(mesh, PartitionSpec(*((None, *parts) if sharded else ())))

  abstract = {n: jax.ShapeDtypeStruct(a.shape, dtype, sharding=place(a)) for n, a in like.items()}
  return param_tree.flatten(initial(spec, abstract))


def initial(spec, abstract):
  """load_initial for leaves that are stored as they are."""
  plain = storage.of({n: leaf.shape for n, leaf in abstract.items()}, [(".*", "train")], "float32")
  return initial_lib.load_initial(spec, param_tree.unflatten(abstract), plain)


@pytest.mark.parametrize("prefix", ["params/", "", "opt/target/"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_layout_loads_bit_for_bit_and_sharded(tmp_path, prefix, save):
  flat = tree()
  other = {"opt/mu": np.ones(3, np.float32)} if prefix == "params/" else {}
  save(tmp_path / "w.npz", **{prefix + n: a for n, a in flat.items()}, **other)
  loaded = load(str(tmp_path / "w.npz"), flat)
  assert set(loaded) == set(flat)
  for name, array in loaded.items():
    np.testing.assert_array_equal(array, flat[name])
  linear = loaded["llm/layers/mlp/linear"]
  assert {s.data.shape for s in linear.addressable_shards} == {(3, 4, 8)}


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_half_precision_is_read_and_cast_to_what_the_model_stores(tmp_path, stored, wanted):
  flat = tree(stored)
  np.savez(tmp_path / "w.npz", **flat)
  with np.load(tmp_path / "w.npz") as file:
    assert file["img/head/kernel"].dtype == (np.float16 if stored is np.float16 else "V2")
  loaded = load(str(tmp_path / "w.npz"), flat, wanted)
  for name, array in loaded.items():
    assert array.dtype == wanted
    np.testing.assert_array_equal(np.asarray(array), flat[name].astype(wanted))


def test_arrays_in_fortran_order_keep_their_indices(tmp_path):
  flat = {n: np.asfortranarray(a) for n, a in tree().items()}
  np.savez(tmp_path / "w.npz", **flat)
  loaded = load(str(tmp_path / "w.npz"), flat)
  np.testing.assert_array_equal(
    loaded["llm/layers/mlp/linear"], np.ascontiguousarray(flat["llm/layers/mlp/linear"])
  )


@pytest.mark.parametrize(("old", "new"), [(4, 16), (16, 64), (64, 16), (9, 4), (1, 4), (4, 1)])
def test_position_embeddings_are_resampled_as_the_reference_does(tmp_path, old, new, caplog):
  zoom = pytest.importorskip("scipy.ndimage").zoom
  flat = tree(patches=old)
  np.savez(tmp_path / "w.npz", **flat)
  with caplog.at_level("INFO", "pgjax"):
    loaded = load(str(tmp_path / "w.npz"), tree(patches=new))
  side, new_side = int(old**0.5), int(new**0.5)
  grid = flat["img/pos_embedding"].reshape(side, side, -1)
  expected = zoom(grid, (new_side / side, new_side / side, 1), order=1).reshape(1, new, -1)
  np.testing.assert_allclose(loaded["img/pos_embedding"], expected, rtol=0, atol=1e-6)
  assert f"resampled from {side}x{side} to {new_side}x{new_side}" in caplog.text


def test_a_larger_vocabulary_gets_small_new_rows(tmp_path):
  old, new = tree(rows=24), tree(rows=1024)
  np.savez(tmp_path / "w.npz", **old)
  table = np.asarray(load(str(tmp_path / "w.npz"), new)["llm/embedder/input_embedding"])
  np.testing.assert_array_equal(table[:24], old["llm/embedder/input_embedding"])
  assert 0.019 < table[24:].std() < 0.021
  # The rows are the same however the table is sharded.
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  everywhere = NamedSharding(mesh, PartitionSpec())
  places = {n: rows if n.startswith("llm/emb") else everywhere for n in new}
  abstract = {
    n: jax.ShapeDtypeStruct(a.shape, np.float32, sharding=places[n]) for n, a in new.items()
  }
  loaded = initial(str(tmp_path / "w.npz"), abstract)
  np.testing.assert_array_equal(loaded["llm"]["embedder"]["input_embedding"], table)


def test_mismatches_are_listed_in_one_sentence(tmp_path):
  flat = tree()
  np.savez(tmp_path / "w.npz", **flat)
  wanted = dict(flat)
  wanted["llm/extra/w"] = wanted.pop("llm/final_norm/scale")
  wanted["img/head/kernel"] = np.zeros((16, 4), np.float32)
  wanted["llm/embedder/input_embedding"] = np.zeros((23, 8), np.float32)
  with pytest.raises(UserError) as e:
    load(str(tmp_path / "w.npz"), wanted)
  message = str(e.value)
  assert "missing: llm/extra/w" in message
  assert "unexpected: llm/final_norm/scale" in message
  assert "img/head/kernel is (16, 8), the model has (16, 4)" in message
  assert "input_embedding is (24, 8), the model has (23, 8)" in message  # Never cut.


def test_parts_come_from_files_of_their_own(tmp_path):
  flat, other = tree(), {n: a + 1 for n, a in tree().items()}
  np.savez(tmp_path / "a.npz", **{f"params/{n}": a for n, a in flat.items()})
  np.savez(tmp_path / "b.npz", **other)
  np.savez(tmp_path / "img.npz", **{n[4:]: a for n, a in other.items() if n.startswith("img/")})
  a, b, img = (str(tmp_path / f"{f}.npz") for f in ("a", "b", "img"))
  for spec in (dict(img=img, llm=a), dict(img=f"{b}:img", llm=f"{a}:llm"), dict(img=b, llm=a)):
    loaded = load(spec, flat)
    assert set(loaded) == set(flat)
    for name, array in loaded.items():
      np.testing.assert_array_equal(array, (other if name.startswith("img/") else flat)[name])
  assert {n.split("/")[0] for n in load(dict(img=img), flat)} == {"img"}
  with pytest.raises(UserError, match=r"no part \['txt'\]"):
    load(dict(txt=img), flat)
  with pytest.raises(UserError, match="has no part 'txt', but"):
    load(dict(img=f"{a}:txt"), flat)


def test_damaged_files_raise(tmp_path):
  flat, path = tree(), tmp_path / "w.npz"
  np.savez(path, **flat)
  whole = path.read_bytes()
  at = whole.index(flat["llm/layers/mlp/linear"].tobytes())
  for damaged in (
    whole[: len(whole) // 2],  # A download that stopped.
    whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],  # One bit.
    b"not a zip file",
    b"",
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"w\.npz is damaged or no \.npz file"):
      load(str(path), flat)
  np.savez(path, **flat, **{"img/x": np.array([{}], dtype=object)})
  with pytest.raises(UserError, match="damaged"):
    load(str(path), flat)
  np.savez(path, **flat, **{"img/x": np.arange(3)})
  with pytest.raises(UserError, match="'img/x' holds int64"):
    load(str(path), flat)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("readme.txt", "weights are elsewhere")
  with pytest.raises(UserError, match="damaged"):
    load(str(path), flat)


@pytest.fixture
def hub(monkeypatch):
  """The result of a download: `hub.error` is raised, or the folder `hub.answer` returned."""

  def download(repo, allow_patterns):
    assert all(not pattern.endswith((".bin", ".pkl", ".py")) for pattern in allow_patterns)
    asked.repos.append(repo)
    if asked.error:
      raise asked.error
    return str(asked.answer)

  asked = SimpleNamespace(repos=[], error=None, answer=None)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  return asked


def hub_error(kind, status):
  """An error as the hub's client raises it."""
  response = mock.Mock(status_code=status, headers={})
  return kind("the hub's own words", response=response)


def test_known_names_resolve_and_their_absence_raises(tmp_path, monkeypatch, hub):
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  hub.error = OSError("no network")
  with pytest.raises(
    UserError, match=r"could not be downloaded \(no network\).*PGJAX_WEIGHTS_DIR is not set"
  ):
    resolve.resolve("pt_224")
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"none of paligemma2-10b-pt-448\.b16\.npz"):
    resolve.resolve("pt_10b_448")
  for name, file in {
    "pt_448": "paligemma-3b-pt-448.f16.npz",
    "pt_448.f16": "paligemma-3b-pt-448.f16.npz",
    "pt_3b_896": "paligemma2-3b-pt-896.b16.npz",
    "pt_3b_896.bf16": "paligemma2-3b-pt-896.b16.npz",
    "pt_28b_224": "pt_28b_224.bf16.npz",
    "paligemma-3b-mix-224": "paligemma-3b-mix-224.bf16.npz",
    "paligemma2-3b-ft-docci-448": "paligemma2-3b-ft-docci-448",
    "google/paligemma2-3b-mix-448": "paligemma2-3b-mix-448",
  }.items():
    (tmp_path / file).touch()
    assert resolve.resolve(name) == tmp_path / file
  with pytest.raises(UserError, match=r"none of paligemma-3b-pt-448\.bf16\.npz"):
    resolve.resolve("pt_448.bf16")
  hub.repos.clear()
  for wrong in ("pt_225", "pt_7b_224", "weights", str(tmp_path / "none.npz"), "a/b/c"):
    with pytest.raises(UserError, match="no such file or folder; allowed are a workdir"):
      resolve.resolve(wrong)
  assert not hub.repos


@pytest.mark.parametrize(
  ("name", "repo"),
  [
    ("pt_224", "google/paligemma-3b-pt-224"),
    ("pt_3b_448.bf16", "google/paligemma2-3b-pt-448"),
    ("paligemma2-3b-mix-448", "google/paligemma2-3b-mix-448"),
    ("me/mine", "me/mine"),
    ("somewhere/pt_224.npz", "somewhere/pt_224.npz"),
  ],
)
def test_published_names_have_an_id_on_the_hub(name, repo):
  assert resolve.hub_id(name) == repo


def test_missing_checkpoints_are_downloaded(tmp_path, monkeypatch, hub):
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  hub.answer = tmp_path
  assert resolve.resolve("me/mine") == resolve.resolve("pt_3b_448") == tmp_path
  (tmp_path / "x.npz").touch()
  assert resolve.resolve("google/paligemma2-3b-pt-224-jax") == tmp_path / "x.npz"
  assert hub.repos == ["me/mine", "google/paligemma2-3b-pt-448", "google/paligemma2-3b-pt-224-jax"]
  hub.error = hub_error(huggingface_hub.errors.GatedRepoError, 403)
  page = "https://huggingface.co/google/paligemma2-3b-pt-224 in a browser, accept it"
  with pytest.raises(UserError, match=page):
    resolve.resolve("google/paligemma2-3b-pt-224")
  hub.error = hub_error(huggingface_hub.errors.RepositoryNotFoundError, 404)
  with pytest.raises(UserError, match=r"the hub shows no https://huggingface.co/me/mine"):
    resolve.resolve("me/mine")
