"""What tfds.load reads of a data set equals what pgjax reads of it after --from_tfrecord."""

import io

import numpy as np
import pytest
from PIL import Image

from pgjax.data.sources import registry as sources
from pgjax.datasets import from_tfrecord

tf = pytest.importorskip("tensorflow", reason="`make test-tf` installs TensorFlow")
tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("google_crc32c", reason="needs google-crc32c")
pytestmark = pytest.mark.tf


class ManyKinds(tfds.core.GeneratorBasedBuilder):
  """Every kind of feature that the transfers' builders have, in five files."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="part")]  # noqa: RUF012

  def _info(self):
    kinds = tfds.features
    references = dict(id=np.int32, text=kinds.Text())
    objects = dict(label=kinds.ClassLabel(names=["x", "y"]), refs=kinds.Sequence(references))
    features = dict(
      image=kinds.Image(encoding_format="png"),
      text=kinds.Text(),
      texts=kinds.Sequence(kinds.Text()),
      number=np.int64,
      share=np.float32,
      flag=np.bool_,
      box=kinds.BBoxFeature(),
      array=kinds.Tensor(shape=(2, 3), dtype=np.float32),
      objects=kinds.Sequence(objects),
      inner=dict(lists=kinds.Sequence(kinds.Sequence(kinds.Text()))),
    )
    return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(60)}

  def _generate_examples(self, n):
    draw = np.random.default_rng(n)
    for i in range(n):
      file = io.BytesIO()
      Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).save(file, "png")
      file.seek(0)
      refs = [[dict(id=k, text=f"s{k}") for k in range((i + j) % 3)] for j in range(i % 3)]
      yield (
        i,
        dict(
          image=file,
          text=f"tä{i}",
          texts=[f"{j}" for j in range(i % 4)],
          number=2**60 + i,
          share=i / 7,
          flag=bool(i % 2),
          box=tfds.features.BBox(0.1, 0.2, 0.3, i / 600 + 0.2),
          array=draw.random((2, 3)).astype(np.float32),
          objects=[dict(label="xy"[j % 2], refs=refs[j]) for j in range(i % 3)],
          inner=dict(lists=[["a"] * j for j in range(i % 3)]),
        ),
      )


def plain(value):
  """Lists, numbers and texts of tensors and arrays."""
  if isinstance(value, dict):
    return {name: plain(inner) for name, inner in value.items()}
  if isinstance(value, tf.RaggedTensor):
    value = value.to_list()
  value = value.numpy() if hasattr(value, "numpy") else value
  value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
  if isinstance(value, list):
    return [plain(inner) for inner in value]
  return value.decode() if isinstance(value, bytes) else value


def test_every_feature_and_the_order_are_equal(tmp_path):
  builder = ManyKinds(data_dir=str(tmp_path / "tfds"))
  config = tfds.download.DownloadConfig(num_shards=5)
  builder.download_and_prepare(download_config=config)
  from_tfrecord.convert(str(tmp_path / "tfds"), tmp_path, None, 2)
  order = tfds.ReadConfig(interleave_cycle_length=1)
  for split in ("train", "train[10:50]"):
    rows = list(builder.as_dataset(split=split, read_config=order))
    spec = dict(name="many_kinds/part", split=split, data_dir=str(tmp_path))
    source = sources.open(spec)
    assert len(source) == len(rows)
    for i, row in enumerate(rows):
      found = {name: source[i][name] for name in row}
      found["image"] = np.asarray(Image.open(io.BytesIO(found["image"])))
      assert plain(found) == plain(row), i
