"""The ops of big_vision's transfer configs on prepared rows of their data sets, at 28 px."""

import jax
import numpy as np
import pytest
import raw_captions

from pgjax.data.pp import parse
from pgjax.data.sources import registry as sources
from pgjax.datasets import base, registry, writing
from pgjax.formats import seg_vae_npz
from pgjax.models import seg_vae

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools.
]
IMAGE = "decode|resize(28)|value_range(-1, 1)"
PAIR = (
  'resize(28, key="image_left")|resize(28, key="image_right")'
  '|stack_images(inkeys=["image_left", "image_right"], outkey="image")|value_range(-1, 1)'
  '|video_ensure_shape("image", (2, 28, 28, 3))|strfmt("answer en {sentence}", outkey="prefix")'
)
PROMPT = 'strfmt("caption en", outkey="prefix")'
SCICAP = "caption/lowercase_and_token_and_remove_figure_index"
WIDGET = "decode|resize(28, antialias=True)|draw_bbox|value_range(-1, 1)"
SEGMENT = (
  'flatten|choice_no_replacement(key=["objects/mask", "objects/bbox", "objects/refs/sentence"])'
  f'|choice(key=["objects/refs/sentence"])|{IMAGE}|refcoco_mask2str("VAE")'
)
TRAIN = [  # Name, part, split, ops until the text is packed, a prompt, and an answer.
  (
    *("coco_captions", None, "train+restval"),
    f'flatten|{IMAGE}|choice_no_replacement(inkey="captions/text", outkey="suffix")|{PROMPT}',
    *("caption en", 'A "plate", of 0 grün .'),
  ),
  (
    *("coco35l", None, "train_de+train_en"),
    f'flatten|{IMAGE}|choice_no_replacement(inkey="captions", outkey="suffix")'
    '|strfmt("caption {language}", outkey="prefix")',
    *("caption de", "de тарелка 皿 0"),
  ),
  (
    *("text_caps", None, "train"),
    f'flatten|{IMAGE}|choice_no_replacement(inkey="texts", outkey="suffix")|{PROMPT}'
    '|lower(key="suffix")',
    *("caption en", 'a sign "1".'),
  ),
  (
    *("scicap", "first_sentence_subfig_no", "train"),
    f'{IMAGE}|{PROMPT}|copy(inkey="{SCICAP}", outkey="suffix")',
    *("caption en", "réseau , x = 0 ."),
  ),
  (
    *("screen2_words", None, "train"),
    f'{IMAGE}|{PROMPT}|copy(inkey="image/id", outkey="_id")'
    '|choice_no_replacement(inkey="summary", outkey="suffix")',
    *("caption en", 'page, of "1" 0'),
  ),
  (
    *("widgetcap", None, "train"),
    f'{WIDGET}|{PROMPT}|choice_no_replacement(inkey="texts", outkey="suffix")',
    *("caption en", 'say "hi"'),
  ),
  (
    *("nlvr2", None, "train+dev"),
    f'{PAIR}|copy(inkey="label", outkey="suffix")',
    *("answer en Two dogs, 2.", "True"),
  ),
  (*("ref_coco_bv", "refcoco_unc", "train_flat"), SEGMENT, "the lady, 1 0 0 naïve", None),
]
EVALUATE = [  # The same of evaluators; here, the last is the references.
  (
    *("coco_captions", None, "val"),
    f'flatten|copy("captions/text", "captions")|{IMAGE}|{PROMPT}',
    *("caption en", ['A "plate", of 0 grün .']),
  ),
  (
    *("nocaps", None, "val"),
    f'copy("texts", "captions")|{IMAGE}|{PROMPT}',
    *("caption en", ["Ein “Ding” 1", "Ein “Ding” 4"]),
  ),
  (
    *("xm3600", None, "sw"),
    f'flatten|{IMAGE}|strfmt("caption sw", outkey="prefix")',
    *("caption sw", ["sw Käse, 0", "sw Käse, 1"]),
  ),
  (
    *("scicap", "first_sentence_subfig_no", "test"),
    f'reshape([1], inkey="{SCICAP}", outkey="captions")|{IMAGE}|{PROMPT}',
    *("caption en", ["réseau , x = 0 ."]),
  ),
  (
    *("widgetcap", None, "dev"),
    f'copy("texts", "captions")|{WIDGET}|{PROMPT}',
    *("caption en", ["go back", "zurück, bitte"]),
  ),
  (
    *("marvl", None, "test_ta"),
    f'{PAIR}|copy(inkey="label", outkey="answer")|copy(inkey="example_id", outkey="question_id")',
    *("answer en ta 图 0", "True"),
  ),
]


def rows(name, part, split, pp, tmp_path):
  """The rows after the ops, in three epochs."""
  data = registry.find(name)
  (tmp_path / "raw").mkdir()
  raw_captions.MAKERS[name](tmp_path / "raw")
  splits = split.split("+")
  writing.prepare(data, base.Raw(tmp_path / "raw"), tmp_path, part, splits, writing.Options(2))
  spec = dict(name=data.full_name(part), split=split, data_dir=str(tmp_path))
  source, ops = sources.open(spec), parse.parse(pp)
  drawn = ((dict(_seed=(0, 1, i, e), _epoch=e), i) for e in range(3) for i in range(len(source)))
  return [ops(source[i] | seed) for seed, i in drawn]


@pytest.mark.parametrize(
  ("name", "part", "split", "pp", "prefix", "suffix"), TRAIN, ids=[case[0] for case in TRAIN]
)
def test_training_rows(name, part, split, pp, prefix, suffix, tmp_path):
  if "VAE" in pp:
    path = tmp_path / "vae.npz"
    seg_vae_npz.save(path, seg_vae.init(jax.random.key(0), width=8, embed_dim=8))
    pp = pp.replace("VAE", str(path))
  found = rows(name, part, split, pp, tmp_path)
  for row in found:
    assert row["image"].shape[-3:] == (28, 28, 3)
    assert row["image"].dtype == np.float32
  answers = {str(row["suffix"]) for row in found if row["prefix"] == prefix}
  assert answers if suffix is None else suffix in answers
  if name == "ref_coco_bv":
    assert all(a.startswith("<loc") and a.count("<seg") == 16 for a in answers)


@pytest.mark.parametrize(
  ("name", "part", "split", "pp", "prefix", "captions"),
  EVALUATE,
  ids=[case[0] for case in EVALUATE],
)
def test_rows_of_evaluators(name, part, split, pp, prefix, captions, tmp_path):
  found = rows(name, part, split, pp, tmp_path)
  column = "answer" if name == "marvl" else "captions"
  answers = [row[column] for row in found if row["prefix"] == prefix]
  assert captions in [a if isinstance(a, str) else list(map(str, a)) for a in answers]
  identity = "question_id" if name == "marvl" else "image/id"
  assert len({row[identity] for row in found}) == len(found) // 3
