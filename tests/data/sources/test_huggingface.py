"""Data sets of the hub, as the package `datasets` opens them; without a network."""

import numpy as np
import pytest
from PIL import Image

from pgjax.data import images
from pgjax.data.sources import registry

# Without it, `datasets` would be the folder of that name in tests/.
pytest.importorskip("datasets.features", reason="datasets (requirements-data.txt) is missing")
import datasets


@pytest.fixture
def pictures(monkeypatch, tmp_path):
  """[row][image] uint8 arrays of the data set that any name opens."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(256, size=(4, 2, 8, 9, 3), dtype=np.uint8)
  features = datasets.Features(
    images=datasets.Sequence(datasets.Image()),
    picture=datasets.Image(),
    query=datasets.Value("string"),
    label=datasets.ClassLabel(names=["no", "yes"]),
  )
  of_row = [[Image.fromarray(one) for one in row] for row in pictures]
  columns = dict(images=of_row, picture=[row[0] for row in of_row], query=list("wxyz"),
                 label=[0, 1, 0, 1])  # fmt: skip
  opened = datasets.Dataset.from_dict(columns, features=features)

  def load_dataset(*_, streaming, **__):
    return opened.to_iterable_dataset() if streaming else opened

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path))
  opened.save_to_disk(tmp_path / "saved")
  return pictures


@pytest.mark.parametrize("image", ["picture", "images"])
def test_rows_are_the_same_from_the_hub_a_stream_and_the_disk(pictures, tmp_path, image):
  fields = dict(split="train", image=image, prefix="query", suffix="label")
  for rows, spec in (
    (4, dict(name="hf:owner/name")),
    (3, dict(name=f"hf:owner/{image}", streaming=True, rows=3)),
    (3, dict(name=f"hf:owner/{image}", streaming=True, rows=3)),  # From the cache.
    (4, dict(name="hf", fname=str(tmp_path / "saved"))),
  ):
    source = registry.open(spec | fields)
    assert len(source) == rows
    row = source[1]
    assert (row["prefix"], row["suffix"]) == ("x", "yes")
    assert source.texts(1)["prefix"] == "x"
    encoded = row["image"] if image == "images" else [row["image"]]
    expected = pictures[1][: len(encoded)]
    np.testing.assert_array_equal([images.decode(one) for one in encoded], expected)
