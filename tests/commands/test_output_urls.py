"""Commands whose results are named by s3:// URLs; here the store is fsspec's memory."""

import json
import shutil

import bucket_servers
import pytest

from pgjax import check, convert, plan, predict
from pgjax.checkpoints import bucket_lock
from pgjax.errors import UserError
from pgjax.formats import buckets, outputs
from tests import small_checkpoint
from tests.commands import test_train as runs

pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path, monkeypatch):
  monkeypatch.setattr(bucket_lock, "POLL_SECONDS", 0.02)
  return bucket_servers.in_memory(tmp_path, monkeypatch)


def names(store):
  return {path.removeprefix("/bucket/") for path in store.store}


def staged(tmp_path):
  return list((tmp_path / "cache/buckets/out").iterdir())


def test_a_folder_is_uploaded_with_its_last_file_last_and_nothing_stays_here(
  store, tmp_path, monkeypatch
):
  order, put = [], buckets.Bucket.put
  monkeypatch.setattr(
    buckets.Bucket, "put", lambda self, file, name: (order.append(name), put(self, file, name))
  )
  with outputs.new("s3://bucket/out/model", "--dst") as output:
    output.path.mkdir()
    for name in ("a", "config.json", "z"):
      (output.path / name).write_text(name)
  assert order[-1] == "model/config.json"
  assert names(store) == {"out/model/a", "out/model/config.json", "out/model/z"}
  assert not staged(tmp_path)
  with pytest.raises(UserError, match=r"--dst=s3://bucket/out/model exists already"):
    outputs.new("s3://bucket/out/model", "--dst").__enter__()


def write_while_the_store_fails(monkeypatch):
  def failing(*_):
    raise buckets.BucketError("HTTP 500")

  with outputs.file("s3://bucket/a.json", "--json") as output:
    output.path.write_text("{}")
    monkeypatch.setattr(buckets.Bucket, "put", failing)


def test_what_cannot_be_uploaded_stays_here_and_is_named(store, tmp_path, monkeypatch):
  with pytest.raises(
    UserError, match=r"--json=.* cannot be written \(HTTP 500\). Everything is in"
  ):
    write_while_the_store_fails(monkeypatch)
  [folder] = staged(tmp_path)
  assert (folder / "a.json").read_text() == "{}"


def test_a_store_that_cannot_be_written_is_reported_before_the_work(store, monkeypatch):
  def refused(*_):
    raise buckets.BucketError("Access Denied")

  monkeypatch.setattr(buckets.Bucket, "write", refused)
  with pytest.raises(UserError, match=r"--out=s3://bucket/x cannot be written \(Access Denied\)"):
    outputs.folder("s3://bucket/x", "--out").__enter__()


@pytest.mark.slow
def test_convert_reads_and_writes_urls(store, tmp_path, root, capsys):
  source = small_checkpoint.write(tmp_path / "source", root)
  orbax, npz, hf = "s3://bucket/m/orbax", "s3://bucket/m/weights.npz", "s3://bucket/m/hf"
  for src, dst, to in ((source, orbax, "orbax"), (orbax, npz, "bv"), (npz, hf, "hf")):
    argv = [f"--src={src}", f"--dst={dst}", f"--to={to}", "--verify"]
    assert runs.run_here(convert, argv) == 0
  back = tmp_path / "back"
  assert runs.run_here(convert, [f"--src={hf}", f"--dst={back}", "--to=orbax", "--verify"]) == 0
  sums = [
    json.loads((place / "run.json").read_text())["sums"] for place in (tmp_path / "source", back)
  ]
  assert sums[0] == sums[1]
  assert not staged(tmp_path)
  assert runs.run_here(convert, [f"--src={source}", f"--dst={npz}", "--to=bv"]) == 1
  assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_reads_questions_and_images_and_writes_answers_and_pictures(store, tmp_path, root):
  source = small_checkpoint.write(tmp_path / "source", root)
  pytest.importorskip("easy_vqa")
  import easy_vqa

  image = easy_vqa.get_test_image_paths()[0]
  store.put_file(image, "/bucket/q/a.png")
  store.pipe("/bucket/q/in.jsonl", b'{"image": "a.png", "prefix": "what?"}\n' * 2)
  store.put(source, "/bucket/model", recursive=True)
  ckpt = "--ckpt=s3://bucket/model"
  out = ["--jsonl=s3://bucket/q/in.jsonl", "--out=s3://bucket/answers.jsonl"]
  assert runs.run_here(predict, [ckpt, *out]) == 0
  shutil.copy(image, tmp_path / "a.png")
  (tmp_path / "in.jsonl").write_bytes(store.cat_file("/bucket/q/in.jsonl"))
  local = [f"--jsonl={tmp_path / 'in.jsonl'}", f"--out={tmp_path / 'out.jsonl'}"]
  assert runs.run_here(predict, [f"--ckpt={source}", *local]) == 0
  assert store.cat_file("/bucket/answers.jsonl") == (tmp_path / "out.jsonl").read_bytes()
  one = ["--image=s3://bucket/q/a.png", "--prompt=what?", "--draw=s3://bucket/drawn.png"]
  assert runs.run_here(predict, [ckpt, *one]) == 0
  assert store.cat_file("/bucket/drawn.png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_check_and_plan_write_to_urls(store, tmp_path, capsys):
  data = "--config.input.data={'name': 'easy_vqa', 'split': 'train[:20]'}"
  argv = ["--config=configs/easyvqa.py", data, "--config.evals={}", "--out=s3://bucket/check"]
  assert runs.run_here(check, argv) == 0
  assert {"check/check.html", "check/check.json", "check/report.txt"} <= names(store)
  assert "s3://bucket/check/check.html" in capsys.readouterr().out
  argv = ["--config=configs/easyvqa.py", "--json=s3://bucket/plan.json"]
  assert runs.run_here(plan, argv) == 0
  assert json.loads(store.cat_file("/bucket/plan.json"))
