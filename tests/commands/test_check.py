"""Data with one defect of each kind is reported with its line; good data has no findings."""

import io
import json
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from pgjax import check, cli
from pgjax.data import images, locations
from pgjax.data_check import boxes as box_check, findings, page as check_page, scan
from pgjax.formats import input_files, seg_vae_npz
from pgjax.models import seg_vae

BOX = "<loc0100><loc0100><loc0900><loc0900>"


def pixels(i):
  """Another image for every i."""
  return np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)


def encoded(i, format="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(pixels(i)).save(file, format, **options)
  return file.getvalue()


def write(folder, name, rows):
  (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
  """40 images, and good data."""
  for i in range(40):
    (tmp_path / f"{i}.png").write_bytes(encoded(i))
  write(tmp_path, "train.jsonl", [good(i) for i in range(20)])
  write(tmp_path, "val.jsonl", [good(i) for i in range(20, 24)])
  return tmp_path


def good(i, **fields):
  return dict(image=f"{i}.png", prefix=f"what is {i}", suffix=f"it is {i}") | fields


def look(folder, *flags, status):
  """check.json of the data in the folder, and its findings as {kind: (data, examples)}."""
  data = f"train={folder}/train.jsonl,val={folder}/val.jsonl"
  recipe = f"variant=tiny,text_len=32,res=16,batch_size=4,{data}"
  argv = ["check", f"--config=configs/forkme.py:{recipe}", f"--out={folder}/out", "--num=1", *flags]
  with pytest.raises(SystemExit) as end:
    cli.run(check.main, check.__doc__, check.FLAGS, config=check.CONFIG, argv=argv)
  assert (end.value.code or 0) == status
  result = json.loads((folder / "out/check.json").read_text())
  return result, {f["kind"]: (f["data"], " ".join(f["examples"])) for f in result["findings"]}


def test_good_data_has_no_findings_and_is_described(folder, capsys):
  result, by_kind = look(folder, status=0)
  assert by_kind == {}
  assert "No problems found." in capsys.readouterr().out
  training = result["data"]["training"]
  assert training["examples"] == training["images"]["different"] == 20
  assert training["columns"]["suffix"] == {"text": 20}
  assert training["images"]["width"] == dict(min=8, median=8, p99=8, max=8)
  assert training["texts"]["prefixes"]["different"] == 20
  names = {path.name for path in (folder / "out").iterdir()}
  assert names == {"report.txt", "check.json", "check.html", "example_0.png"}


DEFECTS = {
  "unreadable image": (good(2, image="none.png"), "none.png cannot be read: No such file"),
  "damaged image": (good(3, image="damaged.png"), "the image cannot be decoded"),
  "refused": (dict(image="4.png", prefix="p"), "there is no 'suffix' after pp"),
  "malformed box": (
    good(5, suffix="<loc0900><loc0100><loc0100><loc0900> cat"),
    "y1=100 is not above y0=900",
  ),
  "too many cut": (good(6, suffix="a long answer " * 20), "fit"),
  "empty answer": (good(7, suffix=" "), "prefix 'what is 7'"),
  "class not asked for": (
    good(8, prefix="detect cat ; dog", suffix=f"{BOX} horse ; {BOX} dog"),
    "['horse'] to 'detect cat ; dog'",
  ),
  "duplicate box": (
    good(9, prefix="detect cat", suffix=f"{BOX} cat ; {BOX} cat"),
    f"cat at {BOX} and",
  ),
  "mixed types": (good(10, note=3), "note is number, not text"),
  "rotated image": (good(11, image="rotated.jpg"), ""),
  "flat image": (good(11, image="flat.png"), ""),
  "image word": (good(25, prefix="<image>what is 25"), ""),
  "special word": (good(26, suffix="it is 26<eos>"), "the answer has <eos>"),
  "leading space": (good(27, suffix=" it is 27"), "the answer is ' it is 27'"),
  "dim image": (good(11, image="dim.png"), ""),
  "repeated": (good(0), "line 1 (image 0.png)"),
  "contradiction": (good(0, suffix="it is not 0"), "'it is not 0', but 'it is 0' as"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_in_the_training_data_is_reported_with_its_line(folder, kind):
  row, detail = DEFECTS[kind]
  (folder / "damaged.png").write_bytes(encoded(3)[:100])
  Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "flat.png")
  Image.fromarray(pixels(11)[:, :, 0].astype(np.uint16) * 64).save(folder / "dim.png")
  exif = Image.Exif()
  exif[0x0112] = 6
  (folder / "rotated.jpg").write_bytes(encoded(11, "JPEG", exif=exif))
  rows = [good(i, note="a") for i in (0, *range(12, 20))]
  write(folder, "train.jsonl", [*rows, row])
  is_error = kind in findings.ERRORS
  result, by_kind = look(folder, status=int(is_error))
  data, examples = by_kind.pop(kind)
  assert by_kind == {}
  assert data == "training"
  assert f"train.jsonl, line {len(rows) + 1} (image {row['image']})" in examples
  assert detail in examples
  assert (result["errors"], result["warnings"]) == ((1, 0) if is_error else (0, 1))


def test_a_null_answer_of_an_evaluator_is_a_warning_and_of_training_an_error(folder):
  write(folder, "val.jsonl", [good(20, suffix=None), good(21)])
  _, by_kind = look(folder, status=1)
  assert by_kind["no answer"][0] == "evals.val"
  assert by_kind["refused"][0] == "evals.val/pplx"
  write(folder, "val.jsonl", [good(21)])
  write(folder, "train.jsonl", [good(0), good(1, suffix=None)])
  _, by_kind = look(folder, status=1)
  assert "'suffix' is null; remove the row" in by_kind["refused"][1]


def test_images_on_a_disk_that_does_not_answer_end_the_check(folder, monkeypatch, capsys):
  read, released = input_files._read, threading.Event()  # noqa: SLF001

  def hanging(path, *more):
    if path.endswith(".png"):
      released.wait()
    return read(path, *more)

  monkeypatch.setattr(input_files, "_read", hanging)
  monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.2)
  argv = [
    "check",
    f"--config=configs/forkme.py:variant=tiny,res=16,train={folder}/train.jsonl,val=",
  ]
  with pytest.raises(SystemExit) as end:
    cli.run(
      check.main,
      check.__doc__,
      check.FLAGS,
      config=check.CONFIG,
      argv=[*argv, f"--out={folder}/out"],
    )
  released.set()
  assert end.value.code == 1
  assert "0.png cannot be read: no answer for 0.2 s" in capsys.readouterr().err


def test_an_empty_answer_to_detect_is_not_a_defect(folder):
  write(folder, "train.jsonl", [good(i, prefix="detect cat", suffix="") for i in range(3)])
  assert look(folder, status=0)[1] == {}


def test_prompts_are_decoded_if_pp_tokenizes(folder):
  asked = lambda question, answer: good(0, question=question, answer=answer)  # noqa: E731
  write(folder, "train.jsonl", [asked("what", "a"), asked("who", "b"), asked("who", "c")])
  pp = (
    'decode|resize(16)|value_range(-1, 1)|copy("question", "prefix")|copy("answer", "suffix")'
    '|tok(key="prefix", bos="yes")|tok(key="suffix", eos="yes")|tok(key="septok", text="\\n")'
    '|masked_concat(["prefix", "septok", "suffix"], mask_ar=[0, 0, 1], mask_loss=[0, 0, 1])'
    '|tolen(33, pad_value=0, key="text")|tolen(33, pad_value=1, key="mask_ar")'
    '|tolen(33, pad_value=0, key="mask_loss")|keep("image", "text", "mask_ar", "mask_loss")'
  )
  _, by_kind = look(folder, f"--config.input.pp={pp}", status=0)
  assert by_kind.keys() == {"contradiction"}
  assert "line 3" in by_kind["contradiction"][1]
  assert "'c', but 'b' as" in by_kind["contradiction"][1]


def test_allowed_truncation_is_a_warning(folder):
  write(folder, "train.jsonl", [good(i, suffix="a long answer " * 20) for i in range(3)])
  _, by_kind = look(folder, "--config.input.allow_truncated=True", status=0)
  assert by_kind.keys() == {"cut"}


def test_examples_in_training_and_evaluation_are_reported(folder):
  rows = [good(0), good(1, prefix="another"), good(30), good(31, suffix="x" * 20)]
  write(folder, "val.jsonl", rows)
  result, by_kind = look(folder, "--config.evals.val.max_decode_len=20", status=0)
  data, examples = by_kind["example in training"]
  assert data == "evals.val"
  assert "val.jsonl, line 1 (image 0.png): as" in examples
  assert "train.jsonl, line 1 (image 0.png)" in examples
  assert "val.jsonl, line 2 (image 1.png)" in by_kind["image in training"][1]
  assert "val.jsonl, line 4" in by_kind["answer too long"][1]
  assert "21 tokens with <eos>, max_decode_len=20" in by_kind["answer too long"][1]
  kinds = [f["kind"] for f in result["findings"]]
  assert len(kinds) == len(set(kinds))  # Once: val/pplx is of the same data.
  assert result["data"]["evals.val/pplx"]["data"] == "that of evals.val"


def test_images_over_the_limit_are_reported(folder, monkeypatch):
  monkeypatch.setattr(images, "MAX_PIXELS", 60)
  _, by_kind = look(folder, status=1)
  assert "the image declares 8 x 8 = 64 pixels" in by_kind["damaged image"][1]


def test_answers_that_are_not_json_are_reported_if_most_are(folder):
  record = [good(i, suffix=json.dumps(dict(total=i))) for i in range(4)]
  write(folder, "train.jsonl", [*record, good(4, suffix='{"total": ')])
  _, by_kind = look(folder, status=0)
  assert by_kind.keys() == {"not JSON"}
  assert "line 5" in by_kind["not JSON"][1]
  write(folder, "train.jsonl", [*record[:1], *(good(i) for i in range(4, 8))])
  assert look(folder, status=0)[1] == {}


def test_data_that_cannot_be_opened_is_reported_and_the_rest_is_checked(folder):
  (folder / "train.jsonl").write_text('{"image": "0.png"\n')
  write(folder, "val.jsonl", [good(i, image="none.png") for i in range(20, 27)])
  result, by_kind = look(folder, status=1)
  assert by_kind["not opened"][0] == "training"
  assert "train.jsonl, line 1: not JSON" in by_kind["not opened"][1]
  assert "\n\n\n" not in (folder / "out/report.txt").read_text()
  [missing] = [f for f in result["findings"] if f["kind"] == "unreadable image"]
  assert (missing["count"], len(missing["examples"])) == (7, findings.EXAMPLES)


def test_a_report_of_nothing_has_no_empty_lines(folder, capsys):
  (folder / "train.jsonl").write_text("{")
  (folder / "val.jsonl").write_text("{")
  look(folder, status=1)
  assert "\n\n\n" not in capsys.readouterr().out
  assert "\n\n\n" not in (folder / "out/report.txt").read_text()


def test_what_is_read_as_something_else_is_in_the_report(folder):
  rows = [dict(file_name=f".\\{i}.png", prefix="p", suffix=f"s {i}") for i in (0, 1)]
  write(folder, "train.jsonl", rows)
  result, by_kind = look(folder, status=0)
  assert by_kind == {}
  columns, names = result["data"]["training"]["read_as"]
  assert columns == "image from 'file_name' (2)"
  assert names.startswith("2 of 2 images have another name on the disk (2 by backslashes)")
  page = (folder / "out/check.html").read_text()
  assert "<dt>read as</dt><dd>image from &#x27;file_name&#x27; (2); 2 of 2 images" in page


def test_an_id_of_two_examples_is_reported_where_answers_are_predicted(folder):
  for name, first in (("train.jsonl", 0), ("val.jsonl", 20)):
    write(folder, name, [good(first + i, id=f"q{i % 3}") for i in range(4)])
  result, by_kind = look(folder, status=0)
  assert by_kind.keys() == {"repeated id"}
  data, examples = by_kind["repeated id"]
  assert data == "evals.val"
  assert "val.jsonl, line 4 (image 23.png): id 'q0', as" in examples
  assert result["warnings"] == 1


def test_all_facts_about_images_are_on_the_page(folder):
  write(folder, "train.jsonl", [good(i, image=[f"{i}.png", "9.png"][: i + 1]) for i in (0, 1)])
  argv = [
    "check", f"--out={folder}/out", "--num=0",
    f"--config=configs/forkme.py:variant=tiny,res=16,train={folder}/train.jsonl,val=",
    "--config.num_frames=2",
  ]  # fmt: skip
  with pytest.raises(SystemExit):
    cli.run(check.main, check.__doc__, check.FLAGS, config=check.CONFIG, argv=argv)
  page = (folder / "out/check.html").read_text()
  assert "of an example: min 1, median 1, 99% 2, max 2" in page
  assert "width all 8; height all 8" in page


def test_images_are_limited_and_evenly_spaced(folder):
  (folder / "19.png").unlink()
  result, by_kind = look(folder, "--images=2", status=0)
  assert by_kind == {}
  assert result["data"]["training"]["images"]["looked_at"] == 2
  assert scan.evenly(20, 2) == [0, 10]


def test_of_the_weights_only_the_tokenizer_is_downloaded(folder, capsys, monkeypatch):
  argv = ["check", f"--config=configs/forkme.py:train={folder}/train.jsonl,val=", f"--out={folder}"]
  downloads = []

  def fake_download(repo, **how):
    downloads.append(how)
    raise OSError("not in the cache")

  monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
  with pytest.raises(SystemExit, match="1"):
    cli.run(check.main, check.__doc__, check.FLAGS, config=check.CONFIG, argv=argv)
  [how] = downloads
  assert not any("safetensors" in pattern or "npz" in pattern for pattern in how["allow_patterns"])
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("error: https://huggingface.co/google/paligemma")
  assert "could not be downloaded (not in the cache)" in error
  assert "or use --config.tokenizer=tiny" in error


def test_the_page_escapes_data_and_loads_nothing(folder):
  (folder / "1.png").unlink()
  write(folder, "train.jsonl", [good(0, prefix="<script>alert(1)</script>"), good(1)])
  look(folder, status=1)
  page = (folder / "out/check.html").read_text()
  assert "<script" not in page
  assert "&lt;script&gt;" in page
  assert page.count("data:image/png;base64,") == 1
  assert "http:" not in page
  assert "https:" not in page
  assert "default-src 'none'" in page


@pytest.mark.parametrize(
  ("piece", "why"),
  [
    ("<loc0001><loc0002><loc0003> cat", "3 <loc>, not 4"),
    ("<loc0001><loc0002><loc0003><loc1024> cat", "above 1023"),
    ("<loc0001><loc0005><loc0003><loc0005> cat", "x1=5 is not above x0=5"),
    (BOX + "<seg001> cat", "1 <seg>, not 16"),
    (BOX + "<seg128>" * 16 + " cat", "a <seg> above 127"),
    ("<loc1><loc2><loc3><loc4> cat", "without its leading zeros"),
    (BOX, "a box without a label"),
    (f"cat {BOX}", "a box without a label"),
    (f"cat {BOX} cat", "before or between the tokens"),
  ],
)
def test_a_malformed_box_is_reported_with_the_reason(piece, why):
  assert locations.parse(piece).malformed == 1
  assert why in box_check.fault(piece)


def test_masks_that_do_not_survive_their_codes_are_reported():
  square = [0, 0, 10, 0, 10, 10, 0, 10]

  class Source:
    def texts(self, i):
      outlines = [square, [1, 2]] if i else [None]
      outlines = [outline and [outline] for outline in outlines]
      boxes = [[0, 0, 0.5, 0.5]] * len(outlines)
      return dict(segmentations=outlines, boxes=boxes, height=20, width=20)

  book = findings.Book("training", lambda i: f"row {i}")
  masked = box_check.objects_with_masks(Source(), [0, 1], book)
  assert [(i, k) for i, k, *_ in masked] == [(1, 0), (1, 1)]
  same = (lambda masks_BHW1: masks_BHW1, lambda values: 2 * values - 1)
  facts = box_check.mask_round_trips(masked, same, book)
  assert facts == dict(number=2, looked_at=2, mean_iou=1.0, least_iou=1.0)
  assert [f.kind for f in book.findings(2)] == ["malformed mask"]
  nothing = (lambda masks_BHW1: masks_BHW1, lambda values: -1 - values)
  assert box_check.mask_round_trips(masked, nothing, book)["least_iou"] == 0
  assert "row 1: object 0: 0.00" in check_page.text(book.findings(2))


def test_a_spread_has_values_of_the_data():
  of = scan.spread([3, 1, 2, 10])
  assert of == (1, 2, 10, 10)
  assert check_page.spread(of) == "min 1, median 2, 99% 10, max 10"
  assert check_page.spread(scan.spread([7, 7])) == "all 7"
  assert scan.spread([]) is None


@pytest.mark.parametrize(
  ("value", "name"),
  [
    (True, "true/false"),
    (np.float32(1), "number"),
    ([1, 2.5], "list of number"),
    ([1, "a"], "list of several types"),
    ([[1]], "list of list of number"),
    (None, "null"),
  ],
)
def test_types_have_jsons_names(value, name):
  assert scan.type_name(value) == name


def test_masks_of_a_coco_file_are_encoded_and_drawn(folder):
  params = seg_vae.init(jax.random.key(0), width=8, embed_dim=8)
  seg_vae_npz.save(folder / "masks.npz", params)
  outline = [[1, 1, 6, 1, 1, 6]]  # A triangle, and random weights make a square of it.
  content = dict(
    images=[dict(id=i, file_name=f"{i}.png", width=8, height=8) for i in range(3)],
    categories=[dict(id=0, name="cat")],
    annotations=[
      dict(id=i, image_id=i, category_id=0, bbox=[1, 1, 5, 5], segmentation=outline)
      for i in range(3)
    ],
  )
  (folder / "train.json").write_text(json.dumps(content))
  config = dict(
    data=dict(name="coco", fname=f"{folder}/train.json"),
    pp='decode|resize(16)|value_range(-1, 1)|strfmt("segment cat", outkey="prefix")'
    f'|masks_to_suffix("{folder}/masks.npz")|keep("image", "prefix", "suffix")',
  )
  flags = [f"--config.input.{name}={value}" for name, value in config.items()]
  result, by_kind = look(folder, *flags, status=0)
  assert by_kind.keys() == {"coarse mask"}
  facts = result["data"]["training"]
  assert facts["masks"]["number"] == facts["masks"]["looked_at"] == 3
  assert facts["texts"]["boxes"]["with_mask"] == 3


def coco(folder, name, boxes, *, size=(8, 8), **fields):
  """A COCO file with a box of each image; `boxes` are {image: (category, bbox)}."""
  images = [dict(id=i, file_name=f"{i}.png", width=size[0], height=size[1]) for i in boxes]
  annotations = [
    dict(id=i, image_id=i, category_id=category, bbox=bbox)
    for i, (category, bbox) in boxes.items()
    if category
  ]
  categories = [dict(id=1, name="cat"), dict(id=2, name="dog")]
  content = dict(images=images, annotations=annotations, categories=categories) | fields
  (folder / name).write_text(json.dumps(content))


GOOD = {i: (1 + i % 2, [1, 2, 5, 4]) for i in range(8)}


def look_at_boxes(folder, *, status, train="train.json", val=""):
  """As `look`, with configs/detect.py."""
  data = f"train={folder}/{train},val={folder / val if val else ''}"
  spec = f"configs/detect.py:variant=tiny,res=32,text_len=32,{data}"
  argv = ["check", f"--config={spec}", f"--out={folder}/out", "--num=0"]
  with pytest.raises(SystemExit) as end:
    cli.run(check.main, check.__doc__, check.FLAGS, config=check.CONFIG, argv=argv)
  assert (end.value.code or 0) == status
  result = json.loads((folder / "out/check.json").read_text())
  return result, {f["kind"]: (f["data"], " ".join(f["examples"])) for f in result["findings"]}


def test_good_boxes_have_no_findings_and_those_of_evaluators_are_counted(folder):
  coco(folder, "train.json", GOOD)
  coco(folder, "val.json", {20: (1, [0, 0, 8, 8]), 21: (None, None)})
  result, by_kind = look_at_boxes(folder, status=0, val="val.json")
  assert by_kind == {}
  assert result["data"]["evals.val"]["texts"]["boxes"]["classes"] == [["cat", 1]]
  prompts = {of["texts"]["prefixes"]["commonest"][0][0] for of in result["data"].values()}
  assert prompts == {"detect cat ; dog"}


def test_prompts_are_those_of_training_also_for_other_categories_and_no_objects(folder):
  coco(folder, "train.json", GOOD)
  reverse = [dict(id=2, name="dog"), dict(id=1, name="cat", supercategory="cat")]
  for boxes, noted in (({20: (1, [0, 0, 8, 8])}, set()), ({20: (None, None)}, {"source"})):
    coco(folder, "val.json", boxes, categories=reverse)
    result, by_kind = look_at_boxes(folder, status=0, val="val.json")
    assert by_kind.keys() == noted
    prompt = result["data"]["evals.val"]["texts"]["prefixes"]["commonest"][0][0]
    assert prompt == "detect cat ; dog"


def test_other_prompts_of_an_evaluator_are_reported(folder):
  write(folder, "train.jsonl", [good(i, prefix="detect cat ; dog", suffix="") for i in range(9)])
  rows = [good(20, prefix="detect cat", suffix=""), good(21, prefix="detect dog ; cat", suffix="")]
  write(folder, "val.jsonl", rows)
  _, by_kind = look(folder, status=0)
  data, examples = by_kind["other prompt"]
  assert data == "evals.val"
  assert "line 1 (image 20.png): 'detect cat', and training asks 'detect cat ; dog'" in examples
  assert "line 2 (image 21.png): 'detect dog ; cat', and training" in examples
  assert "in another order" in examples


def test_image_files_of_other_sizes_are_reported(folder):
  coco(folder, "train.json", GOOD, size=(8, 16))
  _, by_kind = look_at_boxes(folder, status=1)
  assert "declares an image of 8 x 16 pixels, and its file is 8 x 8" in by_kind["wrong size"][1]
  coco(
    folder, "train.json", {i: (c, [10 * n for n in b]) for i, (c, b) in GOOD.items()}, size=(80, 80)
  )
  _, by_kind = look_at_boxes(folder, status=0)
  assert by_kind.keys() == {"scaled size"}


def test_boxes_that_do_not_fit_are_reported(folder):
  coco(folder, "train.json", {i: (1, [4, 3, 8, 7]) for i in range(8)})
  _, by_kind = look_at_boxes(folder, status=0)
  assert by_kind.keys() == {"odd boxes"}
  assert "8 of 8 boxes end outside of their images" in by_kind["odd boxes"][1]
  assert "if their numbers were x0, y0, x1, y1" in by_kind["odd boxes"][1]
  coco(folder, "train.json", {i: (1, [0.1, 0.2, 0.5, 0.6]) for i in range(8)})
  _, by_kind = look_at_boxes(folder, status=0)
  assert "8 of 8 boxes are less than a pixel" in by_kind["odd boxes"][1]


def test_the_jsonl_of_other_tools_is_checked(folder):
  """As Roboflow exports it: all classes in each prefix, boxes in the suffix."""
  row = lambda i, suffix: dict(image=f"{i}.png", prefix="detect RBC ; WBC", suffix=suffix)  # noqa: E731
  two = "<loc0458><loc0205><loc0833><loc0537> WBC ; <loc0375><loc0649><loc0580><loc0822> RBC"
  write(folder, "_annotations.train.jsonl", [row(0, two), row(1, "")])
  write(folder, "_annotations.valid.jsonl", [row(20, two)])
  files = dict(train="_annotations.train.jsonl", val="_annotations.valid.jsonl")
  result, by_kind = look_at_boxes(folder, status=0, **files)
  assert by_kind == {}
  assert result["data"]["evals.val"]["texts"]["boxes"]["objects"] == 2
  write(folder, "_annotations.valid.jsonl", [row(20, two.replace("0833", "0400"))])
  _, by_kind = look_at_boxes(folder, status=1, **files)
  assert "suffix_to_boxes reads four <loc>" in by_kind["refused"][1]


def test_the_page_says_what_is_checked_with_findings_first(folder):
  coco(folder, "train.json", {i: (1, [4, 3, 8, 7]) for i in range(8)})
  coco(folder, "val.json", {20: (1, [0, 0, 8, 8])})
  look_at_boxes(folder, status=0, val="val.json")
  page = (folder / "out/check.html").read_text()
  assert "<h1>Data check: train.json, val.json</h1>" in page
  assert "color-scheme: light dark" in page
  assert page.index("end outside of their images") < page.index("<h2>The data</h2>")
