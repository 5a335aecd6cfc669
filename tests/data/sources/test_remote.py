"""A data set in an object store is the same data set; a row of it cannot lead elsewhere."""

import io
import json
import re

import bucket_servers
import numpy as np
import pytest
from PIL import Image

from pgjax.data.sources import registry, remote
from pgjax.errors import UserError
from pgjax.formats import buckets

pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path, monkeypatch):
  return bucket_servers.in_memory(tmp_path, monkeypatch)


def png(seed):
  file = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), np.uint8)
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def write(store, images=("a.png",)):
  rows = [dict(image=name, prefix="what?", suffix=str(i)) for i, name in enumerate(images)]
  store.pipe("/bucket/set/train.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())


def test_rows_and_images_of_a_bucket_are_those_of_the_files(store):
  write(store, ["a.png", "more/b.png"])
  for seed, name in enumerate(("a.png", "more/b.png")):
    store.pipe(f"/bucket/set/{name}", png(seed))
  for fields in ({}, dict(root="s3://bucket/set")):
    source = registry.open(dict(name="jsonl", fname="s3://bucket/set/train.jsonl", **fields))
    assert [source[i]["image"] for i in range(2)] == [png(0), png(1)]
    assert [source[i]["suffix"] for i in range(2)] == ["0", "1"]
  store.pipe("/bucket/set/a.png", png(7))  # Changed, and of another size or tag.
  store.rm("/bucket/set/more/b.png")
  write(store)
  source = registry.open(dict(name="jsonl", fname="s3://bucket/set/train.jsonl"))
  assert [source[i]["image"] for i in range(len(source))] == [png(7)]


@pytest.mark.parametrize(
  "name", ["s3://bucket/other/a.png", "file:///etc/passwd", "http://127.0.0.1/a.png", "../x.png"]
)
def test_a_row_of_a_bucket_does_not_lead_elsewhere(store, name):
  store.pipe("/bucket/other/a.png", png(0))
  write(store, [name])
  with pytest.raises(UserError, match=re.escape(name.removeprefix("file:///"))):
    registry.open(dict(name="jsonl", fname="s3://bucket/set/train.jsonl"))


def test_an_object_whose_name_leads_out_of_the_folder_is_refused(store, monkeypatch):
  stamps = {"../../x.png": buckets.Stamp(1, "")}
  monkeypatch.setattr(buckets.Bucket, "listing", lambda self: stamps)
  monkeypatch.setattr(buckets.Bucket, "is_object", lambda self: False)
  with pytest.raises(UserError, match="outside of"):
    remote.downloaded(dict(fname="s3://bucket/set"))


def test_errors_of_the_bucket_are_one_sentence(store, monkeypatch):
  with pytest.raises(UserError, match="There is nothing at s3://bucket/none"):
    registry.open(dict(name="jsonl", fname="s3://bucket/none"))
  failing = lambda self: (_ for _ in ()).throw(RuntimeError("HTTP 500\nand more"))  # noqa: E731
  monkeypatch.setattr(buckets.Bucket, "_fs", failing)
  with pytest.raises(
    UserError, match=r"fname=s3://bucket/set cannot be read \(.*HTTP 500 and more"
  ):
    registry.open(dict(name="jsonl", fname="s3://bucket/set"))
