"""The tokenizer of a run and of the weights it starts from: the words of both, or an error."""

import json
import os
import shutil

import numpy as np
import pytest
import small_checkpoint
from ml_collections import ConfigDict

from pgjax import check
from pgjax.checkpoints import load, restore, source as source_lib, tokenizers
from pgjax.convert import WRITERS
from pgjax.data import tokenizer
from pgjax.errors import UserError
from pgjax.formats import lazy_array
from pgjax.inference import engine
from pgjax.models import paligemma

WORDS = ["<card_a>", "<card_b>"]


@pytest.fixture(scope="module")
def exported(root, tmp_path_factory):
  """A Hugging Face folder of a small checkpoint."""
  folder = tmp_path_factory.mktemp("exported")
  small_checkpoint.write(folder / "run", root)
  source = source_lib.open_source(str(folder / "run"))
  WRITERS["hf"](folder / "hf", source, source.leaves)
  return folder / "hf"


@pytest.fixture
def hf(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / "hf")


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def add_words(folder, first=1793):
  tokens = [dict(id=first + i, content=word) for i, word in enumerate(WORDS)]
  edit(folder / "tokenizer.json", lambda t: t["added_tokens"].extend(tokens))


def config(model_init, rows=1856, name="tiny"):
  llm = dict(small_checkpoint.FIELDS["model.llm"], vocab_size=rows)
  return ConfigDict(dict(tokenizer=name, model_init=str(model_init), model=dict(llm=llm)))


def test_a_run_gets_the_words_of_its_initial_weights(hf, caplog):
  caplog.set_level("INFO", "pgjax")
  assert tokenizers.tokenizer_of_run(config(hf)).path == "tiny"
  assert not caplog.records
  add_words(hf)
  ours = tokenizers.tokenizer_of_run(config(hf))
  assert ours.encode("a<card_b>") == [*tokenizer.load("tiny").encode("a"), 1794]
  assert "adds to config.tokenizer='tiny': <card_a>, <card_b>" in caplog.text
  assert tokenizers.tokenizer_of_run(config(hf, name=str(hf))).sha256 == ours.sha256
  assert tokenizers.tokenizer_of_run(config(hf, name="missing.model")).sha256 == ours.sha256


def test_a_config_may_have_more_words_than_the_weights(hf, tmp_path):
  more = shutil.copytree(hf, tmp_path / "more")
  add_words(more)
  assert tokenizers.tokenizer_of_run(config(hf, name=str(more))).path == str(more)


def test_other_words_at_the_same_ids_are_an_error(hf):
  def swap(content):
    vocab = content["model"]["vocab"]
    vocab["yes"], vocab["no"] = vocab["no"], vocab["yes"]

  (hf / "tokenizer.model").unlink()
  edit(hf / "tokenizer.json", swap)
  with pytest.raises(UserError, match=r"'tiny' has '(yes|no)' at id \d+, .* for other words"):
    tokenizers.tokenizer_of_run(config(hf))


def test_a_token_table_with_fewer_rows_than_ids_is_an_error(hf):
  with pytest.raises(UserError, match=r"vocab_size is 1,791, and .*'tiny' has 1,792 ids"):
    tokenizers.tokenizer_of_run(config("", rows=1791))
  add_words(hf)
  with pytest.raises(UserError, match=r"is 1,792, .* 1,795 ids.*Set model.llm.vocab_size=1795"):
    tokenizers.tokenizer_of_run(config(hf, rows=1792))
  assert engine.open_checkpoint(str(hf)).config.model.llm.vocab_size == 1856  # Rows of zeros.


def test_weights_that_came_with_more_words_later_are_an_error(hf):
  ours = tokenizer.load("tiny")
  assert list(tokenizers.notes_on_start(start(hf), ours)) == []
  add_words(hf)
  with pytest.raises(UserError, match=r"has words that config\.tokenizer='tiny' lacks"):
    list(tokenizers.notes_on_start(start(hf), ours))


def test_images_that_are_prepared_in_another_way_are_reported_at_the_start(hf):
  ours = tokenizer.load("tiny")
  [note] = tokenizers.notes_on_start(start(hf, 'resize(48, method="bicubic")'), ours)
  assert "prepares images as decode(precise=True)|resize(res, antialias=True)" in note
  assert 'this config as decode|resize(res, method="bicubic")' in note


def start(hf, resize="resize(48, antialias=True)"):
  fields = config(hf)
  fields.input = dict(data={}, pp=f"decode|{resize}|value_range(-1, 1)")
  return fields


def test_questions_use_the_words_and_the_images_of_a_folder(hf):
  opened = engine.open_checkpoint(str(hf))
  assert opened.pp == "decode(precise=True)|resize(48, antialias=True)|value_range(-1, 1)"
  edit(hf / "preprocessor_config.json", lambda c: c.update(resample=3))
  opened = engine.open_checkpoint(str(hf))
  assert opened.pp == 'decode(precise=True)|resize(48, method="bicubic")|value_range(-1, 1)'
  assert f"Images are resized as {hf / 'preprocessor_config.json'} says" in opened.notes[-1]
  opened = engine.open_checkpoint(str(hf), resize="bilinear")
  assert opened.pp == "decode|resize(48)|value_range(-1, 1)"
  edit(hf / "preprocessor_config.json", lambda c: c.update(resample=0))
  with pytest.raises(UserError, match=r"resample is 0, .* --resize=METHOD"):
    engine.open_checkpoint(str(hf))
  assert engine.open_checkpoint(str(hf), resize="bicubic").pp.startswith("decode(precise=True)|")
  with pytest.raises(UserError, match="--resize=area must be one of"):
    engine.open_checkpoint("nowhere", resize="area")


def test_the_words_and_the_images_survive_every_format(hf, tmp_path):
  edit(hf / "preprocessor_config.json", lambda c: c.update(resample=3, image_mean=0, image_std=1))
  edit(
    hf / "tokenizer.json",
    lambda t: t["added_tokens"].append(dict(id=1793, content="<m>", lstrip=True, normalized=False)),
  )
  path, asked = hf, "a  <m> b"
  tiny = tokenizer.load("tiny")
  for to, name in (("orbax", "o"), ("bv", "x.npz"), ("hf", "again")):
    source = source_lib.open_source(str(path))
    ours = tokenizer.Tokenizer(source.tokenizer, str(path))
    assert ours.encode(asked) == [*tiny.encode("a"), 1793, *tiny.encode(" b")]
    assert source.images()[:3] == ("bicubic", 0, 1)
    WRITERS[to](tmp_path / name, source, source.leaves)
    path = tmp_path / name
  again = source_lib.open_source(str(path))
  assert tokenizer.Tokenizer(again.tokenizer, "again").encode(asked) == ours.encode(asked)
  assert again.images()[:3] == ("bicubic", 0, 1)
  assert again.image_token == 1792


def test_a_pipe_as_the_tokenizer_of_a_step_is_an_error(root, tmp_path):
  small_checkpoint.write(tmp_path / "run", root)
  (tmp_path / "run/tokenizer.model").unlink()
  os.mkfifo(tmp_path / "run/tokenizer.model")
  with pytest.raises(UserError, match=r"tokenizer\.model is not a file"):
    source_lib.open_source(str(tmp_path / "run"))


def test_rows_of_image_that_others_trained_are_dropped_at_the_start_of_a_run():
  table = np.random.default_rng(0).normal(size=(1856, 4)).astype(np.float32)
  have, want = table.shape, (1792, 4)
  assert load._fits(paligemma.TOKEN_TABLE, have, want)  # noqa: SLF001
  leaf = load._adapted(paligemma.TOKEN_TABLE, lazy_array.of_array(table), want)  # noqa: SLF001
  np.testing.assert_array_equal(leaf.whole(), table[:1792])
  assert not load._fits(paligemma.TOKEN_TABLE, (1800, 4), want)  # noqa: SLF001


def test_an_adapter_may_bring_its_own_tokenizer_and_a_table_too_small_for_it_is_an_error(hf):
  source = source_lib.open_source(str(hf))
  config = ConfigDict(dict(model=source.model))
  assert restore.tokenizer_of(source, config).vocab_size == 1792
  add_words(hf)
  source = source._replace(tokenizer=tokenizer.load(str(hf)).source)
  with pytest.raises(UserError, match=r"vocab_size of the model .* is 1,792"):
    restore.tokenizer_of(source, config)


def test_a_missing_tokenizer_is_told_from_one_that_does_not_fit():
  """Only for the former pgjax.check advises to name another file."""
  advice = "pgjax.check needs only the tokenizer"
  without = lambda **fields: ConfigDict(config("", **fields).to_dict() | dict(model_init=None))  # noqa: E731
  with pytest.raises(UserError, match=f"missing.model.*{advice}"):
    check.load_tokenizer(without(name="missing.model"))
  with pytest.raises(UserError, match=f"nowhere.*{advice}"):
    check.load_tokenizer(config("nowhere/at_all.npz", name="missing.model"))
  with pytest.raises(UserError, match="a row for each") as error:
    check.load_tokenizer(without(rows=1000))
  assert advice not in str(error.value)
