"""Ops that no transfer uses give the arrays of big_vision's own (PGJAX_BIG_VISION, a checkout)."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="`make test-tf` installs TensorFlow")
from tf_reference import pipeline, tensors
from transfer_rows import encoded, plain, seeded, tiny
from transfer_strings import CHECKOUT

from pgjax.data.pp import parse

pytestmark = [
  pytest.mark.tf,
  pytest.mark.skipif(not CHECKOUT, reason="PGJAX_BIG_VISION is no checkout of big_vision"),
]
IMAGE = dict(image=np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8))
JPEG, PNG = dict(image=encoded(3, "JPEG")), dict(image=encoded(3, "PNG"))
NUMBERS, TABLE = np.arange(3, dtype=np.int32), np.ones((2, 3), np.int32)
GEMMA = '\'gemma(tokensets=("loc", "seg"))\''
CASES = [
  *[
    (pp, IMAGE)
    for pp in (
      "resize_small(31)", "resize_small(31, 'bilinear')", "resize_small(90, 'bicubic', True)",
      "resize_long(40)", "resize_long(99)", "resize_long(40, 'bilinear', False)",
      "resize((20, 33))", "resize([20, 33], 'area')", "resize(20, 'nearest')",
      "resize(20, 'mitchellcubic', antialias=True)", "resize(24)|resize(48, antialias=True)",
      "central_crop", "central_crop(30)", "central_crop((20, 41))", "convert_to_video(5)",
      "vgg_value_range", "clip_value_range", "value_range(0, 1)", "value_range(-1, 1, 10, 100)",
      "value_range(0, 1, 10, 100, True)", "value_range(-1, 1, (1, 2, 3), (200, 210, 220))",
    )
  ],
  ("decode", PNG), ("decode", JPEG), ("decode(precise=True)", JPEG),
  ("onehot(5, key='a')", dict(a=np.int64(3))),
  ("onehot(5, key='a', multi=False)", dict(a=np.int64(3))),
  ("onehot(5, key='a', multi=True)", dict(a=np.array([1, 3]))),
  ("onehot(5, key='a', on=0.9, off=0.1)", dict(a=np.int64(3))),
  ("squeeze_last_dim(key='a')", dict(a=np.ones((3, 1)))),
  ("concat(['a', 'b'], 'c')", dict(a=NUMBERS, b=NUMBERS)),
  ("concat(['a', 'b'], 'c', axis=0)", dict(a=TABLE, b=TABLE)),
  ("pad_to_shape((5, 4), pad_value=7, key='a')", dict(a=TABLE)),
  ("pad_to_shape((5, None), where='before', key='a')", dict(a=TABLE)),
  ("pad_to_shape((5, 4), where='both', key='a')", dict(a=TABLE)),
  ("flatten", dict(a=dict(b=np.int64(1), c=dict(d="x")), e=np.int64(2))),
  ("reshape((3, 2), key='a')", dict(a=TABLE)), ("reshape([-1], key='a')", dict(a=TABLE)),
  ("setdefault('a', 'x')", dict(a="")), ("setdefault('a', 'x')", dict(b="y")),
  ("lower(key='a')", dict(a="ÀBC Dé")), ("lower(key='a')", dict(a=["AB", "cD"])),
  ("majority(inkey='a', outkey='b')", dict(a=["x", "y", "y"])),
  ("majority(key='a')", dict(a=["b", "a", "a", "b"])),
  ("coco_captions", dict(captions=dict(text=["a", "b"]))),
  ("strjoin('-', axis=0, key='a')", dict(a=[["x", "y"], ["u", "v"]])),
  ("getidx('a', 'i', 'b')", dict(a=NUMBERS, i=np.int32(-1))),
  ("tolen(5, pad_value=9, key='a')", dict(a=NUMBERS)),
  ("tolen(2, pad_value=9, sticky_end=True, key='a')", dict(a=NUMBERS)),
  ("tolen(6, pad_key='p', key='a')", dict(a=NUMBERS, p=np.int32(4))),
  (f"tok(model={GEMMA}, key='a')", dict(a="a cat <loc0010>")),
  (f"tok({GEMMA}, 8, bos='yes', eos='sticky', key='a')", dict(a="two dogs run and run and run")),
  (f"tok(model={GEMMA}, length=40, bos='yes', eos='yes', inkey='a', outkey='b')", dict(a="Ü one")),
  ("masked_concat(['a', 'b'], x=[1, 2], y=[0, 5])", dict(a=NUMBERS, b=NUMBERS)),
  ("strfmt('{a} {{b}} {c}', outkey='d')|keep('d')", dict(a=0.1, c=np.float32(2.5))),
  ("choice(n=2, key='a')", dict(a=["x", "x", "x"])),
  ("choice(n=[1, 2], key='a', fewer_ok=True)", dict(a=["x"])),
]  # fmt: skip


@pytest.mark.parametrize(("pp", "values"), CASES)
def test_ops_are_those_of_big_vision(pp, values):
  theirs = pipeline(pp, tokenizer=tiny()[1])(tensors(values))
  ours = parse.parse(pp, tokenizer=tiny()[0])(values | seeded(0))
  assert {name for name in ours if not name.startswith("_")} == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_array_equal(plain(ours[name]), plain(value), strict=not is_text(value))


def is_text(value):
  return np.asarray(plain(value)).dtype.kind in "OU"
