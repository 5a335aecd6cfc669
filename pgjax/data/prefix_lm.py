"""How do a prompt and an answer become token and mask arrays?

Here, for training, evaluation, single predictions and export:

  text     <bos> prefix  \n  suffix <eos>  <pad> ...
  mask_ar     0    0     0     1      1       1
  mask_loss   0    0     0     1      1       0      (training)
  mask_input  1    1     1     1      -       0      (evaluation; no eos, suffix usually absent)

Prefix, newline and suffix are tokenized separately, so no piece spans a boundary. A training row
has text_len + 1 tokens, because inputs are text[:-1] and targets text[1:]; an evaluation row has
text_len. Longer texts are truncated, which `num_tokens` shows. Values follow big_vision's
combine_and_keep_train and combine_and_keep_eval.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pgjax.data import locations


class Packed(NamedTuple):
  """One row (read-only), and the tokens of the whole text (above `room`: it was truncated)."""

  arrays: dict[str, np.ndarray]
  num_tokens: int
  room: int


@functools.lru_cache(maxsize=4096)  # VQA data repeats its questions.
def for_training(
  tokenizer, prefix: str, suffix: str, text_len: int, *, learned_locs: int | None = None
) -> Packed:
  """text, mask_ar, mask_loss: int32[text_len + 1].

  learned_locs: mask_loss is 0 on the <loc> tokens of the suffix after so many (noise_boxes.py).
  """
  answer = [*tokenizer.encode(suffix), tokenizer.eos]
  packed = for_likelihood(tokenizer, prefix, answer, text_len)
  if learned_locs is None:
    return packed
  is_loc = np.isin(packed.arrays["text"], _loc_tokens(tokenizer)) & (packed.arrays["mask_ar"] == 1)
  mask_loss = packed.arrays["mask_loss"] * ~(is_loc & (np.cumsum(is_loc) > learned_locs))
  mask_loss.setflags(write=False)
  return packed._replace(arrays=packed.arrays | dict(mask_loss=mask_loss))


@functools.lru_cache(maxsize=4)
def _loc_tokens(tokenizer) -> np.ndarray:
  return np.array(tokenizer.encode("".join(f"<loc{i:04d}>" for i in range(locations.BINS))))


def for_likelihood(tokenizer, prefix: str, answer: Sequence[int], text_len: int) -> Packed:
  """Like for_training, for an answer in tokens, which need not end with <eos>."""
  prompt = [tokenizer.bos, *tokenizer.encode(prefix), tokenizer.newline]
  return _packed(tokenizer.pad, prompt, list(answer), text_len + 1, mask_loss=(0, 1))


@functools.lru_cache(maxsize=4096)
def for_decoding(tokenizer, prefix: str, text_len: int, *, answer_start: str = "") -> Packed:
  """text, mask_ar, mask_input: int32[text_len]; `answer_start` forces the start of the answer."""
  prompt = [tokenizer.bos, *tokenizer.encode(prefix), tokenizer.newline]
  answer = tokenizer.encode(answer_start)
  return _packed(tokenizer.pad, prompt, answer, text_len, mask_input=(1, 1))


def _packed(pad, prompt, answer, room, **mask) -> Packed:
  tokens = (prompt + answer)[:room]
  num_prompt, num_text = min(len(prompt), room), len(tokens)
  text = np.full(room, pad, np.int32)
  text[:num_text] = tokens
  mask_ar = np.ones(room, np.int32)
  mask_ar[:num_prompt] = 0
  arrays = dict(text=text, mask_ar=mask_ar)
  for name, (in_prompt, in_answer) in mask.items():
    arrays[name] = np.zeros(room, np.int32)
    arrays[name][:num_prompt] = in_prompt
    arrays[name][num_prompt:num_text] = in_answer
  for array in arrays.values():
    array.setflags(write=False)
  return Packed(arrays, len(prompt) + len(answer), room)
