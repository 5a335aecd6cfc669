"""Revisions of the hub, and what is downloaded when. The hub is a fake."""

import json
import logging
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import huggingface_hub.errors
import pytest
from PIL import Image

from pgjax import cli, evaluate, predict
from pgjax.checkpoints import initial, resolve, source as source_lib, tokenizers
from pgjax.data import tokenizer
from pgjax.errors import UserError
from pgjax.params import storage

ONE = "google/paligemma-3b-pt-224"
TWO = "google/paligemma2-3b-pt-224"


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """Records downloads as (id, revision, patterns); `hub.missing` revisions do not exist."""

  def download(repo, allow_patterns, revision=None):
    asked.downloads.append((repo, revision, tuple(allow_patterns)))
    if revision in asked.missing:
      response = mock.Mock(status_code=404, headers={})
      raise huggingface_hub.errors.RevisionNotFoundError("404", response=response)
    return str(asked.folder)

  asked = SimpleNamespace(downloads=[], missing=(), folder=tmp_path / "hub")
  asked.folder.mkdir()
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  return asked


def revisions(hub):
  return [(repo, revision) for repo, revision, _ in hub.downloads]


@pytest.mark.parametrize(
  ("name", "repo", "revision"),
  [
    (f"{ONE}@bfloat16", ONE, "bfloat16"),
    (f"{ONE}@main", ONE, "main"),
    (ONE, ONE, None),
    ("paligemma-3b-mix-448@float16", "google/paligemma-3b-mix-448", "float16"),
    ("pt_224@float16", ONE, "float16"),
    ("pt_224.bf16", ONE, "bfloat16"),
    ("pt_224.f16", ONE, "float16"),
    ("pt_3b_224.bf16", TWO, None),
    ("me/mine@v1.0", "me/mine", "v1.0"),
    ("me/mine@refs/pr/3", "me/mine", "refs/pr/3"),
  ],
)
def test_a_revision_can_follow_every_name_of_the_hub(hub, name, repo, revision):
  assert resolve.resolve(name) == hub.folder
  assert revisions(hub) == [(repo, revision)]


@pytest.mark.parametrize("name", ["me/mine@", "me/mine@-x", "me/mine@a b"])
def test_a_wrong_revision_raises(hub, name):
  with pytest.raises(UserError, match="what follows @ is a revision of the hub"):
    resolve.resolve(name)
  assert not hub.downloads


def test_a_missing_revision_is_named(hub):
  hub.missing = ("fp8",)
  with pytest.raises(UserError, match=f"{ONE} has no revision 'fp8'"):
    resolve.resolve(f"{ONE}@fp8")


@pytest.mark.parametrize(
  ("name", "dtype", "revision"),
  [
    (ONE, "bfloat16", "bfloat16"),
    (ONE, "float16", "float16"),
    (ONE, "float32", None),
    (ONE, None, None),
    ("pt_448", "bfloat16", "bfloat16"),
    (TWO, "float16", None),
    (f"{ONE}-jax", "bfloat16", None),
    (f"{ONE}@main", "bfloat16", "main"),
  ],
)
def test_the_smallest_revision_that_is_exact_is_taken(hub, name, dtype, revision, caplog):
  with caplog.at_level(logging.INFO, "pgjax"):
    resolve.resolve(name, dtype=dtype)
  assert [found for _, found in revisions(hub)] == [revision]
  said = " ".join(caplog.messages)
  if revision in ("bfloat16", "float16"):
    assert f"its revision {revision} is taken, about 6 GB" in said
  elif name == ONE:
    assert "its main is float32, 12 GB" in said


def test_without_that_revision_main_is_taken_and_reported(hub, caplog):
  hub.missing = ("bfloat16",)
  with caplog.at_level(logging.INFO, "pgjax"):
    assert resolve.resolve(ONE, dtype="bfloat16") == hub.folder
  assert revisions(hub) == [(ONE, "bfloat16"), (ONE, None)]
  assert "main is taken" in caplog.messages[-2]


def test_a_revision_is_searched_in_the_local_folder_first(hub, tmp_path, monkeypatch):
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  for file in ("paligemma-3b-pt-224.npz", "paligemma-3b-pt-224.bf16.npz"):
    (tmp_path / file).touch()
  assert resolve.resolve(f"{ONE}@bfloat16").name == "paligemma-3b-pt-224.bf16.npz"
  assert resolve.resolve("pt_224@bfloat16").name == "paligemma-3b-pt-224.bf16.npz"
  assert resolve.resolve("pt_224").name == "paligemma-3b-pt-224.npz"
  assert resolve.resolve(f"{ONE}@v2") == hub.folder  # That may be anything.


def test_a_run_takes_the_revision_of_the_dtype_that_it_stores(hub):
  for spec, revision in (('freeze("bfloat16")', "bfloat16"), ("train", None)):
    stored = storage.of({"llm/final_norm/scale": (4,)}, [(".*", spec)], "float32")
    with pytest.raises(UserError):
      initial.load_initial(ONE, {}, stored)  # The folder is empty.
    assert revisions(hub)[-1] == (ONE, revision)


def test_for_a_tokenizer_only_its_file_is_downloaded(hub):
  (hub.folder / "tokenizer.model").write_bytes(tokenizer.TINY.read_bytes())
  model = SimpleNamespace(llm=dict(variant="gemma_2b"))
  config = SimpleNamespace(tokenizer="/nowhere/tokenizer.model", model_init=ONE, model=model)
  assert tokenizers.tokenizer_of_run(config).vocab_size == 1792
  [(repo, revision, patterns)] = hub.downloads
  assert (repo, revision) == (ONE, None)
  assert not any("safetensors" in pattern or "npz" in pattern for pattern in patterns)


def test_words_that_were_added_to_weights_on_the_hub_are_used_before_they_are_downloaded(hub):
  (hub.folder / "added_tokens.json").write_text(json.dumps({"<card_a>": 1792}))
  (hub.folder / "tokenizer.model").write_bytes(tokenizer.TINY.read_bytes())
  model = SimpleNamespace(llm=dict(variant="gemma_2b"))
  config = SimpleNamespace(tokenizer="tiny", model_init="me/mine@v2", model=model)
  ours = tokenizers.tokenizer_of_run(config)
  assert ours.encode("a<card_a>")[-1] == 1792
  assert {revision for _, revision, _ in hub.downloads} == {"v2"}
  for _, _, patterns in hub.downloads:
    assert not any("safetensors" in pattern or "npz" in pattern for pattern in patterns)
  with pytest.raises(UserError, match=r"has words that config\.tokenizer='tiny' lacks"):
    list(tokenizers.notes_on_start(config, tokenizer.load("tiny")))
  hub.downloads.clear()
  for name in (ONE, f"{TWO}@main", "pt_3b_448", "paligemma2-3b-mix-224"):  # They add none.
    config.model_init = name
    assert tokenizers.tokenizer_of_run(config).path == "tiny"
  assert not hub.downloads


def test_several_arrays_of_one_repository_are_named(hub):
  for name in ("a.npz", "b.npz"):
    (hub.folder / name).touch()
  with pytest.raises(UserError, match=r"has 2 files of weights: a\.npz, b\.npz"):
    resolve.resolve("me/mine")


def end_of(module, *argv):
  """(exit code) of a command in this process."""
  with pytest.raises(SystemExit) as end:
    cli.run(
      module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=[module.__file__, *argv]
    )
  return end.value.code


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--image=/nowhere.png", "--prompt=a"], "/nowhere.png"),
    (["--jsonl=/nowhere.jsonl"], "/nowhere.jsonl"),
    (["--image={image}", "--prompt=a", "--decode=beem(3)"], "--decode: there is no 'beem'"),
    (["--image={image}", "--prompt=a", "--grammar=boxs"], "--grammar"),
    (["--image={image}", "--prompt=a", "--max_decode_len=0"], "--max_decode_len"),
  ],
)
def test_predict_checks_what_is_local_before_a_download(hub, tmp_path, capsys, flags, message):
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  flags = [flag.format(image=tmp_path / "a.png") for flag in flags]
  assert end_of(predict, f"--ckpt={ONE}", *flags) == 1
  assert message in capsys.readouterr().err
  assert not hub.downloads


def test_evaluate_checks_what_is_local_before_a_download(hub, tmp_path, capsys, root):
  flags = [f"--ckpt={ONE}", f"--out={tmp_path / 'o'}"]
  assert end_of(evaluate, *flags) == 1
  assert "no config that says what to score" in capsys.readouterr().err
  config = f"{root}/configs/forkme.py:train=/nowhere.jsonl,val=/nowhere.jsonl,variant=tiny,res=32"
  assert end_of(evaluate, *flags, f"--config={config}") == 1
  assert "/nowhere.jsonl" in capsys.readouterr().err
  assert not hub.downloads
  assert source_lib.needs_download(ONE)
