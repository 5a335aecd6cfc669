"""Tokens and masks against values by hand, and against big_vision's own op string."""

import numpy as np
import pytest

from pgjax.data import prefix_lm, tokenizer
from pgjax.data.pp import parse

TINY = tokenizer.load("tiny")
A, B, YES, NL = TINY.encode("a")[0], TINY.encode("b")[0], TINY.encode("yes")[0], TINY.newline
LOC = 640 + 7

# prefix, suffix, text_len -> text, mask_ar, mask_loss (text_len + 1 each), tokens of the whole text
TRAINING = {
  "padding": ("a", "yes", 5, [2, A, NL, YES, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0], 5),
  "exact fit": ("a", "yes", 4, [2, A, NL, YES, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], 5),
  "eos cut": ("a", "yes", 3, [2, A, NL, YES], [0, 0, 0, 1], [0, 0, 0, 1], 5),
  "prefix fills it": ("ab", "yes", 1, [2, A], [0, 0], [0, 0], 6),
  "empty prefix": ("", "yes", 4, [2, NL, YES, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], 4),
  "empty suffix": ("a", "", 4, [2, A, NL, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0], 4),
  "loc": ("a", "<loc0007>b", 5, [2, A, NL, LOC, B, 1], [0] * 3 + [1] * 3, [0] * 3 + [1] * 3, 6),
  "newline inside": ("a\n", "b", 5, [2, A, NL, NL, B, 1], [0] * 4 + [1] * 2, [0] * 4 + [1] * 2, 6),
}  # fmt: skip

# prefix, answer_start, text_len -> text, mask_ar, mask_input
DECODING = {
  "padding": ("a", "", 5, [2, A, NL, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]),
  "answer begun": ("a", "b", 5, [2, A, NL, B, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 0]),
  "separator cut": ("a", "", 2, [2, A], [0, 0], [1, 1]),
  "empty prefix": ("", "", 3, [2, NL, 0], [0, 0, 1], [1, 1, 0]),
}


def big_vision(pp_end, length, **example):
  """The packing of big_vision's transfers, in its op string."""
  pp = (
    'tok(key="prefix", bos="yes")|tok(key="septok", text="\\n")|'
    f"{pp_end}"
    f'|tolen({length}, pad_value=0, key="text")|tolen({length}, pad_value=1, key="mask_ar")'
  )
  return parse.parse(pp, tokenizer=TINY)(example)


@pytest.mark.parametrize("case", TRAINING)
def test_training_arrays(case):
  prefix, suffix, text_len, text, mask_ar, mask_loss, num_tokens = TRAINING[case]
  packed = prefix_lm.for_training(TINY, prefix, suffix, text_len)
  assert packed.arrays["text"].tolist() == text
  assert packed.arrays["mask_ar"].tolist() == mask_ar
  assert packed.arrays["mask_loss"].tolist() == mask_loss
  assert (packed.num_tokens, packed.room) == (num_tokens, text_len + 1)
  theirs = big_vision(
    'tok(key="suffix", eos="yes")|masked_concat(["prefix", "septok", "suffix"], '
    f'mask_ar=[0, 0, 1], mask_loss=[0, 0, 1])|tolen({text_len + 1}, pad_value=0, key="mask_loss")',
    text_len + 1, prefix=prefix, suffix=suffix,
  )  # fmt: skip
  for key, ours in packed.arrays.items():
    np.testing.assert_array_equal(ours, theirs[key], err_msg=key)
    assert ours.dtype == theirs[key].dtype == np.int32


@pytest.mark.parametrize("case", DECODING)
def test_decoding_arrays(case):
  prefix, start, text_len, text, mask_ar, mask_input = DECODING[case]
  packed = prefix_lm.for_decoding(TINY, prefix, text_len, answer_start=start)
  assert packed.arrays["text"].tolist() == text
  assert packed.arrays["mask_ar"].tolist() == mask_ar
  assert packed.arrays["mask_input"].tolist() == mask_input
  theirs = big_vision(
    'tok(key="suffix", eos="no")|masked_concat(["prefix", "septok", "suffix"], '
    f'mask_ar=[0, 0, 1], mask_input=[1, 1, 1])|tolen({text_len}, pad_value=0, key="mask_input")',
    text_len, prefix=prefix, suffix=start,
  )  # fmt: skip
  for key, ours in packed.arrays.items():
    np.testing.assert_array_equal(ours, theirs[key], err_msg=key)


def test_pieces_do_not_join_across_the_separator():
  ids = prefix_lm.for_training(TINY, "ye", "s", 8).arrays["text"]
  assert YES not in ids
