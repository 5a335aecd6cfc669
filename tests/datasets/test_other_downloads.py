"""The data sets that have no builder to compare with: what is in their files comes out."""

import json

import pytest
import raw_questions

from pgjax.data.sources import registry as sources
from pgjax.datasets import base, registry, writing
from pgjax.errors import UserError


def prepare(name, raw, out):
  data = registry.find(name)
  splits = list(data.splits)
  writing.prepare(data, base.Raw(raw), out, None, splits, writing.Options(workers=1))


def read_back(name, split, out):
  """The rows as training reads them."""
  source = sources.open(dict(name=name, split=split, data_dir=str(out)))
  return [source[i] for i in range(len(source))]


def mmvp(raw, rows):
  text = "\n".join(["Index,Question,Options,Correct Answer", *rows])
  (raw / "Questions.csv").write_text(text + "\n")
  for i in range(1, len(rows) + 1):
    raw_questions.picture(raw / f"MMVP Images/{i}.jpg", i)


def test_mmvp_has_pairs_with_their_choices(tmp_path):
  rows = [
    "1,Are the wings open or closed?,(a) Open (b) Closed,(a)",
    "2,Are the wings open or closed?,(a) Open (b) Closed,(b)",
    '3,"Left, or right?",(a) To the left (of it) (b) To the right (c) None,(c)',
    '4,"Left, or right?",(a) To the left (of it) (b) To the right (c) None,b',
  ]
  mmvp(tmp_path, rows)
  prepare("mmvp", tmp_path, tmp_path / "out")
  found = sorted(read_back("mmvp", "test", tmp_path / "out"), key=lambda row: row["question_id"])
  assert [row["answer"] for row in found] == ["Open", "Closed", "None", "To the right"]
  assert [row["pair"] for row in found] == [0, 0, 1, 1]
  assert found[3]["choices"] == ["To the left (of it)", "To the right", "None"]
  for row, message in (
    ("1,what?,Open or closed,(a)", "no choices"),
    ("1,what?,(a) x (b) y,(c)", "none of a, b"),
  ):
    mmvp(tmp_path, [row])
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
      prepare("mmvp", tmp_path, tmp_path / "bad")


def test_docci_has_the_description_of_each_photo(tmp_path):
  rows = []
  for split in ("train", "test", "qual_dev", "qual_test"):
    for i in range(2):
      raw_questions.picture(tmp_path / f"images/{split}_{i}.jpg", i)
      texts = dict(example_id=f"{split}_{i}", description=f"Two. {split} {i}.")
      rows.append(texts | dict(split=split, image_file=f"{split}_{i}.jpg", alignment=[]))
  path = tmp_path / "docci_descriptions.jsonlines"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  prepare("docci", tmp_path, tmp_path / "out")
  for split in ("train", "test", "qual_dev", "qual_test"):
    found = read_back("docci", split, tmp_path / "out")
    assert {row["image/id"] for row in found} == {f"{split}_0", f"{split}_1"}
    for row in found:
      assert row["captions"] == [f"Two. {split} {row['image/id'][-1]}."]
  path.write_text(json.dumps(rows[0] | dict(image_file="../x.jpg")) + "\n")
  with pytest.raises(UserError, match=r"line 1: image_file.*\.\./x\.jpg"):
    prepare("docci", tmp_path, tmp_path / "bad")
