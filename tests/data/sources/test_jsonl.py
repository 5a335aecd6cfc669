"""JSONL files of other programs: their encodings, and their shapes of rows."""

import codecs
import json
import logging

import pytest

from pgjax.data import loader, tokenizer
from pgjax.data.sources import registry
from pgjax.errors import UserError

ROW = dict(image="a.png", prefix="what colour?", suffix="rød")


@pytest.fixture
def folder(tmp_path):
  for name in ("a.png", "b.png"):
    (tmp_path / name).write_bytes(name.encode())
  return tmp_path


def opened(folder, data):
  if not isinstance(data, bytes):
    rows = data if isinstance(data, list) else [data]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
  (folder / "data.jsonl").write_bytes(data)
  return registry.open(dict(name="jsonl", fname=str(folder / "data.jsonl")))


# Encodings


@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_utf8_with_a_mark_and_any_line_ends_is_read(folder, before, end):
  text = json.dumps(ROW, ensure_ascii=False) + (end or "\n")
  source = opened(folder, before + (text * 2).rstrip("\n" if not end else "").encode())
  assert [source.texts(i)["suffix"] for i in range(len(source))] == ["rød", "rød"]


@pytest.mark.parametrize(
  ("encoding", "message"),
  [
    ("utf-16", "data.jsonl is UTF-16 text, .*must be UTF-8: convert it, with iconv -f UTF-16"),
    ("utf-16-le", "is UTF-16 text"),
    ("utf-16-be", "is UTF-16 text"),
    ("utf-32", "is UTF-32 text"),
    ("cp1252", r"line 2: this is not UTF-8 text: byte 0xf8 in column 58\. .*iconv -f WINDOWS-1252"),
  ],
)
def test_other_encodings_raise_with_what_to_do(folder, encoding, message):
  line = json.dumps(ROW, ensure_ascii=False)
  text = json.dumps(dict(ROW, suffix="red")) + "\n" + line + "\n"
  with pytest.raises(UserError, match=message):
    opened(folder, text.encode(encoding))
  coco = json.dumps(dict(images=[], annotations=[], categories=[dict(id=1, name="rød")]))
  coco = coco.replace("\\u00f8", "ø")
  (folder / "data.json").write_bytes(coco.encode(encoding))
  with pytest.raises(UserError, match=r"UTF-(16|32|8) text"):
    registry.open(dict(name="coco", fname=str(folder / "data.json")))


@pytest.mark.parametrize(
  "half", ["\\ud83d", "\\ude00", "\\ud83d and", "\\ud83d\\u0041", "\\\\\\ud83d"]
)
@pytest.mark.parametrize("field", ["prefix", "suffix", "image"])
def test_half_of_a_surrogate_pair_raises_with_its_line(folder, half, field):
  good = json.dumps(ROW)
  bad = json.dumps(ROW | {field: "nice HALF dog"}).replace("HALF", half)
  with pytest.raises(UserError, match=r"data.jsonl, line 2: .*half of a surrogate pair") as caught:
    opened(folder, f"{good}\n{bad}\n".encode())
  column = bad.index(half.lstrip("\\") and half) + 1 + (2 if half.startswith("\\\\") else 0)
  assert f"in column {column} " in str(caught.value)


def test_whole_surrogate_pairs_and_backslashes_are_text(folder):
  line = json.dumps(ROW).replace("r\\u00f8d", "\\ud83d\\ude00 \\\\ud83d")
  assert opened(folder, line.encode()).texts(0)["suffix"] == "\U0001f600 \\ud83d"


def test_the_tokenizer_refuses_half_of_a_surrogate_pair():
  with pytest.raises(
    UserError, match=r"character 6 of the text 'nice .*ud83d' is not Unicode text, such as half of"
  ):
    tokenizer.load("tiny").encode("nice \ud83d")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"PAR1\x15\x04", "is a Parquet file; each line is one JSON object .*load_dataset"),
    (b"\x1f\x8b\x08\0", "is a gzip file; .*; unpack it"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
    (b"<!doctype html>\n", "is an HTML page"),
  ],
)
def test_another_kind_of_file_is_named(folder, data, message):
  with pytest.raises(UserError, match=f"data.jsonl {message}"):
    opened(folder, data)


# Shapes


def test_a_json_list_is_read_by_entries(folder):
  rows = [dict(ROW, suffix=str(i)) for i in range(3)]
  source = opened(folder, json.dumps(rows, indent=1).encode())
  assert [source.texts(i)["suffix"] for i in range(3)] == ["0", "1", "2"]
  assert source.where(1) == f"{folder}/data.jsonl, entry 2 (image a.png)"
  with pytest.raises(UserError, match=r"data.jsonl, entry 2: \$ is 3; expected `object`"):
    opened(folder, json.dumps([ROW, 3]).encode())


QUESTION = dict(image="a.png", prefix="what?", suffix="cat")


@pytest.mark.parametrize(
  ("row", "what"),
  [
    (dict(image=dict(path="a.png", bytes=None), prefix="what?", suffix="cat"), None),
    (dict(file_name="a.png", prefix="what?", suffix="cat"), "image from 'file_name' (1)"),
    (dict(images=["a.png"], prefix="what?", suffix="cat"), "image from 'images' (1)"),
    (
      dict(image="a.png", conversations=[
        {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "cat"}]),
      "prefix and suffix from 'conversations' (1)",
    ),
    (
      dict(images=["a.png"], messages=[
        dict(role="user", content="<image>what?"), dict(role="assistant", content="cat")]),
      "image from 'images' (1), prefix and suffix from 'messages' (1)",
    ),
    (
      dict(image="a.png", messages=[
        dict(role="user", content=[dict(type="image"), dict(type="text", text="what?")]),
        dict(role="assistant", content=[dict(type="text", text="cat")])]),
      "prefix and suffix from 'messages' (1)",
    ),
  ],
)  # fmt: skip
def test_rows_with_one_meaning_are_read_and_counted(folder, caplog, row, what):
  with caplog.at_level(logging.WARNING, "pgjax"):
    source = opened(folder, row)
  assert {name: source.texts(0)[name] for name in QUESTION} == QUESTION
  assert source[0]["image"] == b"a.png"
  assert [r.getMessage() for r in caplog.records] == (
    [f"{source.fname}, of 1 rows: {what}."] if what else []
  )


TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (dict(image="a.png", conversations=TURNS * 2), "'conversations' has the turns .*one question"),
    (
      dict(image="a.png", conversations=[{"from": "system", "value": "x"}, *TURNS]),
      "has the turns",
    ),
    (dict(image="a.png", conversations=[dict(a=1)]), "has the turns"),
    (
      dict(image="a.png", conversations=[{"from": "human", "value": "is <image> red?"}, TURNS[1]]),
      "has <image> inside the question",
    ),
    (dict(image=dict(bytes="iVBO", path="a.png")), "'image' is an object with 'bytes', 'path'"),
    (dict(image={}), "'image' is an object with nothing"),
    (dict(text="a cat"), "'image' must be a file name .* not None"),
    (dict(images=[], annotations=[], categories=[]), "is a whole COCO file: name it as"),
  ],
)
def test_rows_with_several_meanings_raise(folder, row, message):
  with pytest.raises(UserError, match=f"data.jsonl, line 1.*{message}"):
    opened(folder, row)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (
      dict(prompt="what?", answer="cat"),
      r"no 'prefix'.*add copy\('prompt', 'prefix'\)\|copy\('answer', 'suffix'\) to pp, before keep",
    ),
    (dict(prefix="what?", answer="cat"), r"no 'suffix'.*add copy\('answer', 'suffix'\) to pp"),
    (dict(file_name="a.png", text="a cat"), r"no 'prefix'.*add copy\('text', 'suffix'\) to pp"),
    (dict(prefix="what?", suffix=None), "'suffix' is null; remove the row, or give it a text with"),
  ],
)
def test_a_missing_or_null_text_is_named_with_what_to_write(folder, row, message):
  layout = loader.Layout(16, 16, 0, for_training=True)
  source = opened(folder, dict(image="a.png") | row)
  part = loader.Part("jsonl", source, 1.0)
  loaded = loader.Loader(
    part, 'keep("image", "prefix", "suffix", "id")', tokenizer.load("tiny"), layout, 0
  )
  with pytest.raises(UserError, match=message):
    loaded.num_tokens(0)


def test_a_null_id_is_the_row_number(folder):
  source = opened(folder, dict(ROW, id=None))
  assert source.texts(0)["id"] == source[0]["id"] == "0"


def test_an_image_id_with_two_images_raises(folder):
  rows = [dict(ROW, image_id=7), dict(ROW, image_id=7), dict(ROW, image="b.png", image_id=8)]
  assert len(opened(folder, rows)) == 3
  message = r"line 1 \(image a.png\) and .*line 3 \(image b.png\) have the same image_id 7"
  with pytest.raises(UserError, match=message):
    opened(folder, [*rows[:2], dict(rows[2], image_id=7)])
