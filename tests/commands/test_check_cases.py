"""What pgjax.check says about files as users have them, and about 24 rows in every format.

The cases are small files of the kinds that users of other programs reported; the folder is that of
PGJAX_CASES, beside the checkout by default.
"""

import json
import os
import pathlib
import shutil

import pytest

from pgjax.data.sources import registry
from tests import docs_blocks
from tests.data.sources import test_same_rows as same_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("PGJAX_CASES", ROOT.parent / "shared/cases"))
pytestmark = pytest.mark.slow

# {file: what the report has}. A file whose first word is an error in findings.ERRORS ends with
# status 1; without any words no problem is found.
CASES = {
  "01-coco-size-swapped/train.json": [
    "wrong size", "photo.jpg): the data declares an image of 32 x 64", "its EXIF orientation 6",
    "swapped.jpg)", "another aspect ratio, so its boxes cannot be placed", "scaled size",
    "rotated image", "contradiction",
  ],
  "03-coco-duplicate-category-ids/train.json": [
    "not opened", "'cat' and 'truck' have the same id 1",
  ],
  "04-supercategory-is-name/train.json": [],
  "04-supercategory-is-name/val.json": [],
  "04-supercategory-is-name/val_order.json": [],
  "04-supercategory-is-name/val_empty.json": ["source", "no image has an object"],
  "06-malformed-exif/train.jsonl": [],
  "07-png-large-profile/train.jsonl": [],
  "08-jsonl-encodings/bom.jsonl": [],
  "08-jsonl-encodings/bom_coco.json": ["source", "no image has an object"],
  "08-jsonl-encodings/crlf.jsonl": [],
  "08-jsonl-encodings/cp1252.jsonl": ["not opened", "line 1: this is not UTF-8", "WINDOWS-1252"],
  "08-jsonl-encodings/utf16.jsonl": ["not opened", "is UTF-16 text, as PowerShell's > writes it"],
  "09-lone-surrogate/prefix.jsonl": ["not opened", "line 2: \\ud83d in column 39 is half of a"],
  "09-lone-surrogate/train.jsonl": ["not opened", "line 2: \\ud83d in column 61 is half of a"],
  "10-special-words-in-text/train.jsonl": [
    "malformed box", "line 6 (image 5.png): something before or between the tokens", "image word",
    "special word", "the answer has <eos>", "the prompt has <bos>", "prompt ends with a newline",
    "there are no spaces between <loc>", "leading space",
  ],
  "10-special-words-in-text/words.jsonl": ["image word", "special word", "leading space"],
  "11-image-modes/deep.jsonl": ["damaged image", "(image 12bit.png)", "(image int32.tif)"],
  "11-image-modes/good.jsonl": [
    "damaged image", "(image 12bit.png)", "(image int32.tif)", "flat image",
  ],
  "11-image-modes/train.jsonl": [
    "damaged image", "(image cut.jpg)", "image file is truncated", "(the file is empty)",
    "it is an HEIC image, not one of JPEG", "flat image",
  ],
  "16-paths/absolute.jsonl": [],
  "16-paths/backslash.json": ["source", "have another name on the disk (1 by backslashes)"],
  "16-paths/backslash.jsonl": ["(1 by backslashes), such as 'images/a.jpg' for"],
  "16-paths/nfd.jsonl": ["(1 by Unicode form)"],
  "16-paths/quoted.jsonl": ["(1 by %)"],
  "16-paths/upper.jsonl": ["(1 by case)"],
  "16-paths/url.jsonl": ["not opened", "is a URL; nothing is downloaded"],
  "18-hf-shapes/array.json": ["repeated", "entry 2 (image a.png)"],
  "18-hf-shapes/dict.jsonl": [],
  "18-hf-shapes/llava.jsonl": ["prefix and suffix from 'conversations' (1)"],
  "18-hf-shapes/messages.jsonl": ["image from 'images' (1), prefix and suffix from 'messages' (1)"],
  "18-hf-shapes/metadata.jsonl": [
    "refused", "image from 'file_name' (1)", "add copy('text', 'suffix') to pp",
    "strfmt('caption en', outkey='prefix')",
  ],
  "18-hf-shapes/prompt_answer.jsonl": [
    "refused", "add copy('prompt', 'prefix')|copy('answer', 'suffix') to pp",
  ],
  "19-coco-shapes/badcat.json": ["not opened", "no category 7", "are: 1 (cat), 2 (dog)"],
  "19-coco-shapes/cjk.json": [],
  "19-coco-shapes/emptybbox.json": [],
  "19-coco-shapes/flatpoly.json": [],
  "19-coco-shapes/floatsize.json": [],
  "19-coco-shapes/noanns.json": ["source", "no image has an object"],
  "19-coco-shapes/nobbox.json": [],
  "19-coco-shapes/nocats.json": ["not opened", "no category 1", "the categories are: none"],
  "19-coco-shapes/nosize.json": [],
  "19-coco-shapes/numbername.json": [],
  "19-coco-shapes/rle.json": [],
  "19-coco-shapes/roboflow.json": [],
  "19-coco-shapes/semicolon.json": ["not opened", "the label 'nuts; bolts' cannot be in an answer"],
  "19-coco-shapes/stringcat.json": [],
  "19-coco-shapes/stringids.json": [],
  "19-coco-shapes/twofiles.json": ["not opened", "images 1 and 2 are the same file a.png"],
  "19-coco-shapes/zero.json": ["odd boxes", "2 of 3 boxes are less than a pixel", "left out"],
}  # fmt: skip


def checked(config, out):
  """(exit status, check.json, report.txt)."""
  status = docs_blocks.run_module("pgjax.check", [f"--config={config}", f"--out={out}", "--num=1"])
  return status, json.loads((out / "check.json").read_text()), (out / "report.txt").read_text()


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is no folder (PGJAX_CASES)")
def test_every_case_is_reported(tmp_path, capsys):
  folder = tmp_path / "cases"
  shutil.copytree(FOLDER, folder, copy_function=shutil.copyfile)
  path = folder / "16-paths/absolute.jsonl"
  path.write_text(path.read_text().replace("/ABSOLUTE/PATH/OF/THIS/FOLDER", str(path.parent)))
  wrong = {}
  for name, words in CASES.items():
    of_boxes = name.endswith(".json") and not name.endswith("array.json")
    data = f"train={folder / name},val="
    if name.startswith("04") and "val" in name:
      data = f"train={folder / name}".replace(pathlib.Path(name).name, "train.json")
      data += f",val={folder / name}"
    config = f"configs/{'detect' if of_boxes else 'forkme'}.py:variant=tiny,res=32,{data}"
    status, result, report = checked(config, tmp_path / "out")
    kinds = [finding["kind"] for finding in result["findings"]]
    missing = [word for word in words if word not in kinds and word not in report]
    found = any(word in kinds for word in words)
    if missing or status != (result["errors"] > 0) or bool(kinds) != found or "\n\n\n" in report:
      wrong[name] = status, kinds, missing
  assert not wrong
  listed = {
    str(path.relative_to(folder)) for path in folder.rglob("*.json*") if path.parent != folder
  }
  numbers = {name[:3] for name in CASES}
  assert {name for name in listed if name[:3] in numbers} == set(CASES)


def test_the_same_rows_have_no_findings_in_any_format(tmp_path, monkeypatch, capsys):
  """Each format that test_same_rows.py writes, as `data` of a copy of configs/forkme.py."""
  text, line = (ROOT / "configs/forkme.py").read_text(), '  c.input.data = dict(name="jsonl", '
  before, _, after = text.partition(line)
  formats = set()

  def check_it(expected, spec, *pp):
    config = tmp_path / "mine.py"
    config.write_text(f"{before}  c.input.data = {spec!r}{after[after.index(chr(10)) :]}")
    status, result, report = checked(f"{config}:val=,variant=tiny,res=32", tmp_path / "out")
    assert (status, result["findings"]) == (0, []), (spec, report)
    facts = result["data"]["training"]
    assert facts["examples"] == facts["images"]["different"] == same_rows.ROWS
    formats.add(spec.get("name", spec.get("rows", {}).get("name")))

  monkeypatch.setattr(same_rows, "assert_same", check_it)
  monkeypatch.setattr(same_rows, "rows_in_training_order", lambda *_: None)
  folder = same_rows.write_images(tmp_path)
  check_it(None, dict(name="jsonl", fname=same_rows.write_rows(folder)))
  same_rows.test_json_csv_and_conversations(folder, None)
  same_rows.test_parquet_and_datasets(folder, None, monkeypatch)
  same_rows.test_tar_files(folder, None)
  same_rows.test_class_folders_and_captions(folder)
  same_rows.test_boxes_of_every_format(folder, None)
  others = {"bv:jsonl", "easy_vqa", "video", "<add_your_data_loader_here>"}
  assert formats == set(registry.SOURCES) - others
