"""What is odd or wrong in files of each format: read rightly, or an error that names it."""

import io
import json
import logging
import sys
import tarfile
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pgjax.data import image_size, loader as loader_lib, pipeline, tokenizer
from pgjax.data.sources import registry
from pgjax.errors import UserError

SIZE = (60, 40)  # Width and height.


@pytest.fixture
def folder(tmp_path):
  """a.png and b.png; turned.jpg, which EXIF turns to 40 x 60."""
  for i, name in enumerate(("a.png", "b.png")):
    Image.new("RGB", SIZE, (i, 90, 0)).save(tmp_path / name)
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new("RGB", SIZE).save(tmp_path / "turned.jpg", exif=exif)
  return tmp_path


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def opened(name, fname, **fields):
  return registry.open(dict(name=name, fname=str(fname), **fields))


def test_odd_texts_are_counted_in_every_format(folder):
  """<image> and <eos>, a newline at the end, a null: as in JSONL."""
  png = (folder / "a.png").read_bytes()
  rows = [("<image>what?", "a"), ("what?", "a<eos>"), ("what?\n", "a"), ("what?", "a")]
  table = dict(image=[png] * 4, prefix=[p for p, _ in rows], suffix=[s for _, s in rows])
  pq.write_table(pa.table(table), folder / "rows.parquet")
  lines = "".join(f'a.png,"{prefix}",{suffix}\n' for prefix, suffix in rows)
  members = []
  for i, (prefix, suffix) in enumerate(rows):
    text = json.dumps(dict(prefix=prefix, suffix=suffix)).encode()
    members += [(f"{i}.png", png), (f"{i}.json", text)]
  layout = loader_lib.Layout(res=8, text_len=64, num_frames=0, for_training=True)
  for source in (
    opened("csv", write(folder / "rows.csv", CSV + lines)),
    opened("parquet", folder / "rows.parquet"),
    opened("webdataset", tar(folder, *members)),
  ):
    part = loader_lib.Part("rows", source, 1.0)
    loader = loader_lib.Loader(part, "decode", tokenizer.load("tiny"), layout, 0)
    (scan,) = pipeline.scan([loader], allow_truncated=False)
    begins = [note.split(":")[0] for note in scan.notes]
    assert begins == ["1 of 4 texts", "2 of 4 texts"], scan.notes
  table["suffix"][2] = None
  pq.write_table(pa.table(table), folder / "rows.parquet")
  part = loader_lib.Part("rows", opened("parquet", folder / "rows.parquet"), 1.0)
  loader = loader_lib.Loader(
    part, "decode|resize(8)|value_range(-1, 1)", tokenizer.load("tiny"), layout, 0
  )
  with pytest.raises(UserError, match=r"rows.parquet, row 2: 'suffix' is null"):
    loader(0, 2)


# Boxes


def yolo(folder, yaml="names: [cat, dog]\ntrain: .\n", label="1 0.5 0.5 0.2 0.5\n", name="a"):
  write(folder / f"{name}.txt", label)
  return write(folder / "data.yaml", yaml)


def voc(folder, name="a.png", size=SIZE, box=(6, 4, 30, 20), label="cat", before=""):
  sides = "".join(
    f"<{side}>{n}</{side}>" for side, n in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
  )
  declared = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
  one = f"<object><name>{label}</name><bndbox>{sides}</bndbox></object>"
  xml = f"<annotation><filename>{name}</filename>{declared}{one}</annotation>"
  write(folder / "a.xml", before + xml)
  return folder


def labelme(folder, name="a.png", size=SIZE, **shape):
  shape = dict(label="cat", points=[[6, 4], [30, 20]], shape_type="rectangle") | shape
  content = dict(shapes=[shape], imagePath=name, imageWidth=size[0], imageHeight=size[1])
  write(folder / "a.json", json.dumps(content))
  return folder


def test_yolo_reads_boxes_outlines_and_other_layouts(folder):
  label = "1 0.5 0.5 0.2 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.9\n"
  source = opened("yolo", yolo(folder, label=label), classes=["dog", "cat"])
  assert len(source) == 3  # b.png and turned.jpg have no label file.
  assert source.notes[0].startswith("2 of 3 images have no label file")
  row = source.texts(0)
  assert (row["prefix"], row["labels"]) == ("detect dog ; cat", ["dog", "cat"])
  np.testing.assert_allclose(row["boxes"], [[0.25, 0.4, 0.75, 0.6], [0.1, 0.1, 0.9, 0.5]])
  assert row["segmentations"] == [None, [[6, 4, 30, 4, 30, 36]]]
  write(folder / "set/images/train/a.png", (folder / "a.png").read_bytes())
  write(folder / "set/labels/train/a.txt", "0 0.5 0.5 1 1")
  yaml = "path: ../datasets/set\nnames: {1: b, 0: a}\ntrain: images/train\nval: list.txt\n"
  write(folder / "set/list.txt", "./images/train/a.png\n")
  write(folder / "set/x.yaml", b"\xef\xbb\xbf" + yaml.encode())
  for split in ("train", "valid"):
    assert opened("yolo", folder / "set", split=split).texts(0)["labels"] == ["a"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(label="2 0.5 0.5 1 1"), r"a.txt, line 1: there is no class 2; data.yaml names 0 to 1"),
    (dict(label="0 1 1 1 1\n0 .5 .5 1"), r"line 2: it has 4 numbers; a box is a class and 4"),
    (dict(label="0 .5 .5 x 1"), r"line 1: '0 .5 .5 x 1' are not numbers"),
    (dict(label="0 30 20 10 9"), r"line 1: .* are no shares of the image, .* pixels"),
    (dict(label="0 nan 0 1 1"), r"line 1: .* are no shares"),
    (dict(label="0 0.5 0.5 1 1\n".encode("utf-16")), "is UTF-16 text"),
    (dict(name="z"), "none of the 3 images of split 'train' has a label file, such as .*a.txt"),
    (dict(yaml="names: [a, a]\ntrain: ."), "two classes have the same name, 'a'"),
    (dict(yaml="names: {0: a, 0: b}\ntrain: ."), "data.yaml: line 1: 0 is given twice"),
    (dict(yaml="names: {0: a, 2: b}\ntrain: ."), r"names: has the numbers \[0, 2\], not 0 to 1"),
    (dict(yaml="names: [yes, no]\ntrain: ."), "class 0 is True, no text; write it in quotes"),
    (dict(yaml='names: ["\\ud83d", b]\ntrain: .'), "half of a surrogate pair"),
    (dict(yaml="names: [a, b]\ntrain: ../../x"), r"'../../x' is outside of .*; set root= to"),
    (dict(yaml="names: [a, b]\nval: ."), "there is no split 'train'; it has val"),
    (dict(yaml="train: ."), "there are no names of classes"),
    (dict(yaml="names: [a, b]\ntrain: .\nkpt_shape: [17, 3]"), "key points"),
    (dict(yaml="names: [a\ntrain: ."), "data.yaml: this is not YAML"),
    (dict(yaml="!!python/object/apply:os.system ['x']"), "this is not YAML"),
    (dict(yaml=b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer.*git lfs"),
    (dict(yaml=b"names: [caf\xe9]\n"), "line 1: this is not UTF-8 text.*WINDOWS-1252"),
  ],
)
def test_a_wrong_yolo_data_set_raises(folder, fields, message):
  with pytest.raises(UserError, match=message):
    opened("yolo", yolo(folder, **fields))


def test_two_images_with_one_label_file_raise(folder):
  write(folder / "a.jpg", (folder / "turned.jpg").read_bytes())
  with pytest.raises(UserError, match=r"a.jpg and a.png both have the labels .*a.txt; rename one"):
    opened("yolo", yolo(folder))


def test_the_size_that_a_file_declares_is_compared_with_its_image(folder):
  for make, name in ((voc, "voc"), (labelme, "labelme")):
    source = opened(name, make(folder, "turned.jpg", size=SIZE[::-1]))
    with pytest.raises(UserError, match="EXIF orientation 6 turns it to 40 x 60"):
      image_size.check(source[0])
    scaled = opened(name, make(folder, size=(600, 400), **({"box": (60, 40, 300, 200)}
                    if name == "voc" else {"points": [[60, 40], [300, 200]]})))  # fmt: skip
    assert image_size.check(scaled[0]) == "scaled"
    np.testing.assert_allclose(scaled.texts(0)["boxes"], [[0.1, 0.1, 0.5, 0.5]])
  assert opened("voc", voc(folder, size=None)).texts(0)["width"] == 60


def test_voc_and_labelme_name_their_image_in_odd_ways(folder):
  for name in ("..\\images\\a.png", "C:\\data\\a.png", "renamed.png", "", "A.PNG"):
    assert opened("voc", voc(folder, name)).texts(0)["file_name"] in ("a.png", "A.PNG")
    if name:
      assert opened("labelme", labelme(folder, name)).texts(0)["file_name"] in ("a.png", "A.PNG")
  (folder / "a.png").rename(folder / "c.png")
  with pytest.raises(UserError, match=r"a.xml: image 'none.png' is not in"):
    opened("voc", voc(folder, "none.png"))
  with pytest.raises(UserError, match=r"a.json: image '../x.png' is outside of"):
    opened("labelme", labelme(folder, "../x.png"))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(before='<!DOCTYPE a [<!ENTITY b "c">]>'), "a.xml declares a document type"),
    (dict(before='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "a.xml declares a document type"),
    (dict(before="<"), r"a.xml, line 1: not XML \("),
    (dict(before="<x>" * 60), "nested more than 50 deep"),
    (dict(box=(1, 2, "x", 4)), "<xmax> is 'x', not a number of pixels"),
    (dict(label=" "), "an object has no <name>"),
    (dict(label="a ; b"), "must be text without ;"),
  ],
)
def test_a_wrong_voc_file_raises(folder, fields, message):
  with pytest.raises(UserError, match=message):
    opened("voc", voc(folder, **fields))


def test_classes_of_voc_kitti_and_labelme_may_be_those_of_another_folder(folder, caplog):
  train, val = folder / "train", folder / "val"
  for where, label in ((train, "dog"), (val, "cat")):
    where.mkdir()
    write(where / "a.png", (folder / "a.png").read_bytes())
    voc(where, label=label)
    labelme(where, label=label)
    write(where / "kitti/images/a.png", (folder / "a.png").read_bytes())
    text = f"{label} 0 0 0 6.00 4.00 30.00 20.00 0 0 0\nDontCare -1 -1 -10 0 0 9 9\n"
    write(where / "kitti/labels/a.txt", text)
  for name, inner in (("voc", ""), ("labelme", ""), ("kitti", "kitti")):
    with caplog.at_level(logging.WARNING, "pgjax"):
      source = opened(name, val / inner, classes_from=str(train / inner))
    assert source.texts(0)["prefix"] == "detect dog"
    assert "1 of other classes (cat)" in source.omitted
  assert "1 called DontCare" in source.omitted
  write(val / "kitti/labels/a.txt", "cat 1 2")
  with pytest.raises(UserError, match=r"a.txt, line 1: 'cat 1 2' is no class, three numbers, and"):
    opened("kitti", val / "kitti")
  with pytest.raises(UserError, match="has no folders label_2 and image_2 or labels and images"):
    opened("kitti", val)
  labelme(val, shape_type="circle")
  labelme(train)
  omitted = opened("labelme", val, classes_from=str(train)).omitted
  assert omitted == "1 image without a JSON file, 1 of the shape circle"


def test_roboflow_asks_for_the_classes_of_training(folder):
  def coco(split, names):
    content = dict(
      images=[dict(id=0, file_name="a.png", width=60, height=40)],
      annotations=[dict(image_id=0, category_id=k, bbox=[0, 0, 9, 9]) for k in range(len(names))],
      categories=[dict(id=k, name=name) for k, name in enumerate(names)],
    )
    write(folder / split / "_annotations.coco.json", json.dumps(content))
    write(folder / split / "a.png", (folder / "a.png").read_bytes())

  coco("train", ["cat", "dog"])
  coco("valid", ["dog"])
  assert opened("roboflow", folder, split="val").texts(0)["prefix"] == "detect cat ; dog"
  with pytest.raises(UserError, match=r"no split 'test' that Roboflow.*splits are train, valid"):
    opened("roboflow", folder, split="test")
  with pytest.raises(UserError, match=r"data='roboflow': .*'clases'; its fields are fname"):
    opened("roboflow", folder, clases=["cat"])


# Rows


CSV = "image,prefix,suffix\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ((CSV + "a.png,x,y\n").encode("utf-16"), "is UTF-16 text"),
    ((CSV + "a.png,x,y\n").encode("utf-16-le"), "NUL characters, as UTF-16"),
    (CSV.encode() + b"a.png,x,caf\xe9\n", "line 2: this is not UTF-8 text: byte 0xe9"),
    (CSV + "a.png,x\n", "line 2: it has 2 cells, and the first line names 3 columns"),
    (CSV + 'a.png,"x\ny",z\na.png,x,y,z\n', "line 4: it has 4 cells"),
    (CSV + 'a.png,"x,y\n', r"line 2: not CSV \(unexpected end of data\)"),
    (CSV, "has no examples; its first line names the columns"),
    ("image,image\n", "line 1: .* it has 'image' twice"),
    ("a,b\nx,y\n", "line 2: 'image' must be a file name .* not None"),
    (CSV + "../a.png,x,y\n", "line 2: image '../a.png' is outside of"),
    (CSV + "c.png,x,y\n", "line 2: image 'c.png' is not in"),
    (CSV + "https://x.org/a.png,x,y\n", "is a URL; nothing is downloaded.*allow_urls=True"),
    (b"PAR1", "is a Parquet file; a CSV file is text"),
  ],
)
def test_a_wrong_csv_file_raises(folder, content, message):
  with pytest.raises(UserError, match=f"rows.csv,? ?.*{message}"):
    opened("csv", write(folder / "rows.csv", content))


def test_names_of_images_in_csv_and_parquet_may_have_another_spelling(folder, caplog):
  name = unicodedata.normalize("NFD", "café 1.png")
  write(folder / "in" / name, (folder / "a.png").read_bytes())
  names = ["in\\café 1.png", "in/caf%C3%A9%201.png", "IN/CAFÉ 1.PNG"]
  table = "".join(f'"{one}",what?,x\n' for one in names)
  columns = dict(file_name=names, prefix=["what?"] * 3, suffix=["x"] * 3)
  pq.write_table(pa.table(columns), folder / "rows.parquet")
  write(folder / "metadata.csv", "file_name,prefix,suffix\n" + table)
  for source in (
    opened("csv", folder / "metadata.csv"),
    opened("parquet", folder / "rows.parquet"),
  ):
    assert {source[i]["image"] for i in range(3)} == {(folder / "a.png").read_bytes()}
  assert caplog.text.count("3 of 3 images have another name on the disk") == 2
  columns["file_name"][1] = "in/none.png"
  pq.write_table(pa.table(columns), folder / "rows.parquet")
  with pytest.raises(UserError, match=r"rows.parquet, row 1: image 'in/none.png' is not in"):
    opened("parquet", folder / "rows.parquet")
  columns["file_name"][1] = "../none.png"
  pq.write_table(pa.table(columns), folder / "rows.parquet")
  with pytest.raises(UserError, match=r"rows.parquet, row 1: image '../none.png' is outside of"):
    opened("parquet", folder / "rows.parquet")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"PAR1 and nothing else", "cannot be read as Parquet or Arrow"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
    (b"", "cannot be read as Parquet or Arrow"),
    (None, "cannot be read as Parquet or Arrow: No such file"),
  ],
)
def test_a_wrong_parquet_file_raises(folder, content, message):
  if content is not None:
    write(folder / "rows.parquet", content)
  with pytest.raises(UserError, match=f"rows.parquet {message}"):
    opened("parquet", folder / "rows.parquet")


def test_rows_of_parquet_are_checked(folder):
  images = [(folder / name).read_bytes() for name in ("a.png", "b.png")]
  columns = dict(image=images, image_id=[7, 7], q=["x", "y"], label=[["cat"], ["a", "b"]])
  pq.write_table(pa.table(columns), folder / "rows.parquet")
  source = opened("parquet", folder / "rows.parquet", prefix="q", suffix="label")
  assert source[0]["suffix"] == "cat"  # The only one of a list.
  with pytest.raises(UserError, match=r"row 0 and .*row 1 have the same image_id 7 and different"):
    source[1]
  assert "image" not in source.texts(1)
  with pytest.raises(UserError, match=r"row 0: there is no column 'a' \(suffix=\); it has"):
    opened("parquet", folder / "rows.parquet", suffix="a")
  bad = pa.StringArray.from_buffers(2, *(pa.array([b"ok", b"\xff"]).buffers()[1:]))
  pq.write_table(pa.table(dict(image=images, prefix=bad)), folder / "bad.parquet")
  with pytest.raises(UserError, match=r"bad.parquet, row 1 cannot be read: .*Invalid UTF8"):
    opened("parquet", folder / "bad.parquet").texts(1)
  write(folder / "none/x.txt", "")
  with pytest.raises(UserError, match="neither what save_to_disk writes nor Parquet files"):
    opened("hf", folder / "none")
  with pytest.raises(UserError, match="needs rows="):
    registry.open(dict(name="hf:a/b", split="train", streaming=True))
  with pytest.raises(UserError, match="neither a folder or file here nor a name"):
    registry.open(dict(name="hf:json", split="train"))


def test_a_saved_data_set_may_not_name_other_files(folder):
  state = dict(_data_files=[dict(filename="../secret.arrow")], _indices_files=None)
  write(folder / "saved/state.json", json.dumps(state))
  with pytest.raises(UserError, match=r"file '../secret.arrow' is outside of"):
    opened("hf", folder / "saved")


def test_packages_are_named_when_they_are_missing(folder, monkeypatch):
  for package, spec in (
    ("datasets", dict(name="hf:a/b", split="train")),
    ("pyarrow", dict(name="parquet", fname=str(folder / "x.parquet"))),
  ):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
      UserError, match=rf"needs.* {package}: pip install -r requirements-data.txt"
    ):
      registry.open(spec)


def tar(folder, *members, name="a.tar"):
  with tarfile.open(folder / name, "w") as file:
    for member, data in members:
      info = tarfile.TarInfo(member)
      if isinstance(data, str):
        info.type, info.linkname = tarfile.SYMTYPE, data
      else:
        info.size = len(data)
      file.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
  return folder / name


def test_wrong_tar_files_raise(folder):
  png = (folder / "a.png").read_bytes()
  good = tar(folder, ("d/0.png", png), ("d/0.json", b'{"prefix": "p"}'), ("d/1.png", "/etc/x"))
  source = opened("webdataset", good)
  assert len(source) == 1  # Links are not followed.
  assert source.texts(0) == dict(prefix="p", id="d/0")
  assert source.where(0) == f"{good}, d/0"
  for members, message in (
    ([("0.png", png), ("1.png", png), ("0.txt", b"x")], "the files of '0' at two places"),
    ([("0.png", png), ("0.png", png)], "has '0' twice with the same ending"),
    ([("0.png", png), ("0.json", b"{")], r"a.tar, 0.json: not JSON"),
    ([("0.png", png), ("0.txt", b"\xff")], r"a.tar, 0.txt, line 1: this is not UTF-8"),
    ([("0.txt", b"x")], "'image' must be a file name"),
    ([], "has no examples"),
  ):
    with pytest.raises(UserError, match=message):
      opened("webdataset", tar(folder, *members))[0]
  for data, message in (
    (
      tar(folder, ("0.png", png * 30)).read_bytes()[:3000],
      "a.tar is cut off in '0.png'|unexpected",
    ),
    (b"\x1f\x8b\x08", "is a gzip file, and rows are read at random from a plain tar file; unpack"),
    (b"x" * 2000, "cannot be read as a tar file"),
  ):
    write(folder / "a.tar", data)
    with pytest.raises(UserError, match=message):
      opened("webdataset", folder / "a.tar")


def test_conversations_of_several_questions_are_counted(folder, caplog):
  def talk(*texts):
    names = ("human", "gpt") * 3
    turns = [{"from": who, "value": text} for who, text in zip(names, texts, strict=False)]
    return json.dumps(dict(image="a.png", conversations=turns)) + "\n"

  rows = talk("<image>a", "b") + talk("c", "d", "e", "f") + talk("g", "h", "i", "j")
  path = write(folder / "chat.jsonl", rows)
  with pytest.raises(UserError, match=r"line 2: .*There are 2 such rows of 3; multi_turn='drop'"):
    opened("llava", path)
  assert len(opened("llava", path, multi_turn="drop")) == 1
  assert "left out are 2 conversations of several questions" in caplog.text
  split = opened("llava", path, multi_turn="split")
  assert [split.texts(i)["prefix"] for i in range(5)] == ["a", "c", "e", "g", "i"]
  assert [split.texts(i)["id"] for i in (1, 2)] == ["2#0", "2#1"]
  with pytest.raises(UserError, match="multi_turn='x' must be one of refuse, drop, split"):
    opened("llava", path, multi_turn="x")


def test_captions_of_images_with_one_id_raise(folder):
  def captions(ids=(1, 2), of=(1, 1, 2)):
    images = [dict(id=i, file_name=name) for i, name in zip(ids, ("a.png", "b.png"), strict=True)]
    annotations = [dict(image_id=i, caption=f"c{k}") for k, i in enumerate(of)]
    content = dict(images=images, annotations=annotations)
    return write(folder / "captions.json", json.dumps(content))

  source = opened("coco_captions", captions())
  assert source.texts(0)["captions"] == ["c0", "c1"]
  assert "suffix" not in source.texts(1)
  each = opened("coco_captions", captions(), each="caption", prompt="caption en")
  assert [each.texts(i)["suffix"] for i in range(3)] == ["c0", "c1", "c2"]
  assert (
    opened("coco_captions", captions(of=(2,))).omitted == "1 of 2 images, which have no caption"
  )
  with pytest.raises(UserError, match=r"\(b.png\) and an earlier image \(a.png\) have the same id"):
    opened("coco_captions", captions(ids=(1, 1)))
  with pytest.raises(UserError, match=r"\$.annotations\[0\]: there is no image 9 among the 2"):
    opened("coco_captions", captions(of=(9,)))


def test_class_folders_are_refused_where_classes_are_unclear(folder):
  write(folder / "set/cat/a.png", (folder / "a.png").read_bytes())
  source = opened("folder", folder / "set", prompt="what?", names={"cat": "a cat"})
  assert source.texts(0) == dict(image="cat/a.png", label="a cat", suffix="a cat", prefix="what?",
                                 file_name="cat/a.png", id="cat/a.png")  # fmt: skip
  write(folder / "set/metadata.csv", "file_name,text\n")
  with pytest.raises(UserError, match=r"it has metadata.csv: read that file, with name='csv'"):
    opened("folder", folder / "set")
  with pytest.raises(UserError, match=r"3 images, such as 'a.png', are in no folder of a class"):
    opened("folder", folder)


def test_urls_are_read_where_the_config_allows_them(folder, monkeypatch):
  import fsspec

  fsspec.filesystem("memory").pipe("/x/a.png", b"image")
  monkeypatch.setattr(
    "pgjax.data.sources.image_values._REMOTE", __import__("re").compile("memory:")
  )
  row = dict(image="memory://x/a.png", prefix="p", suffix="s")
  path = write(folder / "rows.jsonl", json.dumps(row) + "\n")
  assert opened("jsonl", path, allow_urls=True)[0]["image"] == b"image"
  with pytest.raises(UserError, match="is not in"):
    opened("jsonl", path)
  inline = dict(row, image="data:image/png;base64,aW1hZ2U=")
  write(folder / "rows.jsonl", json.dumps(inline) + "\n")
  assert opened("jsonl", path, allow_urls=True)[0]["image"] == b"image"
  write(folder / "rows.jsonl", json.dumps(dict(row, image="memory://x/none::file://a")) + "\n")
  with pytest.raises(UserError, match="chains several file systems"):
    opened("jsonl", path, allow_urls=True)[0]
