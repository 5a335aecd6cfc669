"""`python -m pgjax.prepare --from_tfrecord`: TFRecord to ArrayRecord, with checks of every record.

The TFRecord folders are written here; that TensorFlow reads and writes the same format is tested
with a file that it wrote.
"""

import gzip
import json
import os
import shutil
import struct
import types

import numpy as np
import pytest
from array_record.python import array_record_module

from pgjax import prepare
from pgjax.data.sources import registry as sources
from pgjax.datasets import from_tfrecord
from pgjax.errors import UserError
from pgjax.formats import tfrecord

crc32c = pytest.importorskip("google_crc32c", reason="needs google-crc32c")
# [b"", "grün" * 3] as tf.io.TFRecordWriter writes it.
BY_TENSORFLOW = bytes.fromhex(
  "000000000000000029039807d8ea82a20f000000000000006d532b096772c3bc6e6772c3bc6e6772c3bc6e3a778910"
)


def framed(data):
  """A record of TFRecord."""

  def masked(part):
    crc = crc32c.value(part)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

  length = struct.pack("<Q", len(data))
  return length + masked(length) + data + masked(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A data set in two parts; part a has three files in train, and one in "test-dev"."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import example_serializer

  root = tmp_path_factory.mktemp("tfrecord")
  kinds = tfds.features
  features = kinds.FeaturesDict(
    dict(text=kinds.Text(), texts=kinds.Sequence(kinds.Text()), n=kinds.Scalar(np.int64))
  )
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  for part in ("a", "b"):
    folder = root / f"numbers/{part}/1.2.0"
    folder.mkdir(parents=True)
    features.save_metadata(folder, feature_name=None)
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    (folder / "label.labels.txt").write_text("x\ny\n")
    splits, row = {"train": (4, 2, 3), "test-dev": (2,)}, 0
    for split, lengths in splits.items():
      for i, length in enumerate(lengths):
        content = b""
        for row in range(row, row + length):  # noqa: B020
          example = dict(text=f"{part}ä{row}", texts=["x"] * (row % 3), n=2**60 + row)
          content += framed(serializer.serialize_example(features.encode_example(example)))
        row += 1
        name = f"numbers-{split}.tfrecord-{i:05d}-of-{len(lengths):05d}"
        (folder / name).write_bytes(content)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = dict(
      name="numbers",
      configName=part,
      version="1.2.0",
      fileFormat="tfrecord",
      citation="ä",
      splits=[
        dict(name=s, filepathTemplate=template, numBytes="9", shardLengths=[str(x) for x in n])
        for s, n in splits.items()
      ],
    )
    (folder / "dataset_info.json").write_text(json.dumps(info))
  return root / "numbers"


@pytest.fixture
def folder(written, tmp_path):
  """A copy of part a."""
  return shutil.copytree(written / "a/1.2.0", tmp_path / "source")


def convert(source, out, name=None):
  return from_tfrecord.convert(os.fspath(source), out, name, 2)


def test_a_file_of_tensorflow_is_read(tmp_path):
  (tmp_path / "x").write_bytes(BY_TENSORFLOW)
  assert list(tfrecord.records(tmp_path / "x")) == [b"", "grün".encode() * 3]
  assert framed(b"") + framed("grün".encode() * 3) == BY_TENSORFLOW


def test_records_order_and_metadata_stay(written, tmp_path, capsys):
  args = dict(from_tfrecord=os.fspath(written), out=os.fspath(tmp_path), workers=2, dataset=None)
  prepare.main(types.SimpleNamespace(**args, raw=None, parts=None, splits=None, val_ids=None))
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f"numbers/{part}: train 9, test-dev 2 in {tmp_path}/numbers/{part}/1.2.0" for part in "ab"
  ]
  source = sources.open(dict(name="numbers/b", split="train", data_dir=os.fspath(tmp_path)))
  for i in range(9):
    row = dict(text=f"bä{i}", texts=["x"] * (i % 3), n=2**60 + i, id=f"numbers/b:train:{i}")
    assert {name: source[i][name] for name in row} == row
  made = tmp_path / "numbers/a/1.2.0"
  info, old = (
    json.loads((p / "dataset_info.json").read_text()) for p in (made, written / "a/1.2.0")
  )
  assert info == old | dict(fileFormat="array_record")
  assert (made / "label.labels.txt").read_text() == "x\ny\n"
  assert sorted(p.name for p in made.iterdir() if "record" in p.name) == [
    "numbers-test-dev.array_record-00000-of-00001",
    *(f"numbers-train.array_record-0000{i}-of-00003" for i in range(3)),
  ]
  for path in (written / "a/1.2.0").glob("*.tfrecord-*"):
    reader = array_record_module.ArrayRecordReader(
      os.fspath(made / path.name.replace("tfrecord", "array_record"))
    )
    assert reader.read([*range(reader.num_records())]) == list(tfrecord.records(path))


def test_a_name_of_a_config_replaces_the_builders(folder, tmp_path):
  (line,) = convert(folder, tmp_path, "counted")
  assert line.endswith(f"in {tmp_path}/counted/1.2.0")
  source = sources.open(dict(name="counted", split="train", data_dir=os.fspath(tmp_path)))
  assert (len(source), source[8]["text"]) == (9, "aä8")
  assert "(prepared earlier; delete it" in convert(folder, tmp_path, "counted")[0]


def test_a_stopped_run_continues_and_forgets_files_of_another_source(folder, tmp_path):
  damaged = folder / "numbers-train.tfrecord-00002-of-00003"
  good = damaged.read_bytes()
  damaged.write_bytes(good[:-1])
  with pytest.raises(UserError):
    convert(folder, tmp_path)
  work = tmp_path / "numbers/a/.1.2.0.incomplete"
  assert not (tmp_path / "numbers/a/1.2.0").exists()
  kept = work / "numbers-train.array_record-00000-of-00003"
  stamp = kept.stat().st_mtime_ns
  state = (work / ".source.state").read_text()
  with pytest.raises(UserError):
    convert(folder, tmp_path)
  assert (kept.stat().st_mtime_ns, (work / ".source.state").read_text()) == (stamp, state)
  damaged.write_bytes(good)  # Another time of change: everything is copied again.
  convert(folder, tmp_path)
  made = tmp_path / "numbers/a/1.2.0"
  assert (made / kept.name).stat().st_mtime_ns != stamp
  assert not work.exists()
  assert not [path for path in made.iterdir() if path.name.startswith(".")]


FIRST = "numbers-train.tfrecord-00000-of-00003"
DAMAGE = [  # File, what happens to its bytes (None: it is missing), and the message.
  (FIRST, lambda b: b[:-3], r"00003 ends inside the record at byte \d+"),
  (FIRST, lambda b: b[:7], "ends inside the record at byte 0"),
  (FIRST, lambda b: b[:20] + b"?" + b[21:], "byte 0: the checksum of this record's data is wrong"),
  (FIRST, lambda b: b"\x01" + b[1:], "byte 0: the checksum of this record's length is wrong"),
  (FIRST, lambda b: b + framed(b"x"), "has 5 records and dataset_info.json counts 4"),
  (FIRST, gzip.compress, r"is compressed \(GZIP\), which is not read: decompress it first"),
  (FIRST, None, f"source lacks {FIRST}: it is half of a copy"),
  ("features.json", None, "has no features.json"),
  ("features.json", lambda b: b.replace(b"text_feature.Text", b"x.Y"), "features.json cannot be"),
  ("dataset_info.json", lambda b: b[:60], "dataset_info.json: not JSON"),
  (
    "dataset_info.json",
    lambda b: b.replace(b'"tfrecord"', b'"riegeli"'),
    "the format riegeli, not",
  ),
  ("dataset_info.json", lambda b: b.replace(b'"tfrecord"', b'"array_record"'), "is ArrayRecord al"),
  ("dataset_info.json", lambda b: b.replace(b'"numbers"', b'"../x"'), "outside of"),
  ("dataset_info.json", lambda b: b.replace(b'["4"', b'["four"'), 'shardLengths.*"four"'),
  ("dataset_info.json", None, "neither it nor a folder in it has a dataset_info.json"),
]


@pytest.mark.parametrize(("file", "change", "message"), DAMAGE)
def test_what_is_damaged_is_one_sentence(file, change, message, folder, tmp_path):
  path = folder / file
  path.write_bytes(change(path.read_bytes())) if change else path.unlink()
  with pytest.raises(UserError, match=message) as caught:
    convert(folder, tmp_path / "out")
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.glob("out/*/*/1.2.0"))


def test_mistakes_of_the_command_line_are_named(written, tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    convert("/nowhere", tmp_path)
  with pytest.raises(UserError, match=r"x can be the name of one data set, and .*numbers/a"):
    convert(written, tmp_path, "x")
  with pytest.raises(UserError, match="is where the result would be written: name another folder"):
    convert(written / "a", written.parent)
