"""The caption, pair and segmentation data sets, from downloads to records, as their builders do.

Miniature downloads are in raw_captions.py; what big_vision's and TFDS's own builders make of them
was recorded by golden/record_caption_data_sets.py.
"""

import json
import pathlib

import data_set_rows
import pytest
import raw_captions
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from pgjax.data.sources import registry as sources
from pgjax.datasets import base, registry, writing
from pgjax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/caption_data_sets.json"


def prepare(name, raw, out, part=None, splits=None):
  """Prepares a data set; returns its splits by name, as TFDS describes them."""
  data = registry.find(name)
  splits = splits or list(data.counts(part))
  writing.prepare(data, base.Raw(raw), out, part, splits, writing.Options(workers=2))
  return tfds.builder_from_directory(out / data.full_name(part) / data.version).info


def records(split_info):
  found = []
  for path in split_info.filepaths:
    reader = array_record_module.ArrayRecordReader(str(path))
    found += reader.read([*range(reader.num_records())])
  return found


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  return tmp_path / "raw"


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text()))
def test_records_and_their_order_are_those_of_the_builder(name, raw, tmp_path):
  raw_captions.MAKERS[name](raw)
  for part, golden in json.loads(GOLDEN.read_text())[name].items():
    info = prepare(name, raw, tmp_path / "out", part or None, list(golden["splits"]))
    assert str(info.version) == golden["version"]
    assert data_set_rows.features(info) == golden["features"]
    for split, rows in golden["splits"].items():
      assert data_set_rows.normal(records(info.splits[split]), raw) == rows, (part, split)
