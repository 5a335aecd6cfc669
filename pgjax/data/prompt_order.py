"""In which order do the prompts of a split enter its batches, and how long is each batch's text?

Each text length is a program to compile, and padding costs time in the prefill and for each token.
So a split has at most two lengths: that of its longest prompt and, if that saves enough, a shorter
one. Prompts are sorted by length, longest first, so that few batches need the longer one, and
memory that does not suffice shows at once. All processes compute the same order.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pgjax.errors import UserError

MULTIPLE = 16  # Of text lengths, so that evaluators share programs.
MIN_SAVED = 8  # Tokens of padding an example, on average, for which another length is worth it.
MIN_BATCHES = 8  # For which a second program is.


class Order(NamedTuple):
  """Which example is at each place of the split, and how long the texts of each batch are."""

  examples: np.ndarray  # int [number of examples]
  text_lens: np.ndarray | None = None  # int [number of batches]; None: texts are not trimmed.

  def sha256(self) -> str:
    """Identifies the order; an interrupted evaluation resumes only in the same one."""
    digest = hashlib.sha256(self.examples.tobytes())
    digest.update(b"" if self.text_lens is None else self.text_lens.tobytes())
    return digest.hexdigest()

  def trimmed(self, arrays: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """The arrays of an example with the text length of its batch; only padding is removed."""
    if self.text_lens is None:
      return dict(arrays)
    length = int(self.text_lens[batch])
    if np.any(arrays.get("mask_input", np.zeros(0))[length:]):
      raise UserError(f"the prompt has over {length} tokens with its image, and fewer without it")
    texts = {name: arrays[name][:length] for name in _TEXTS if name in arrays}
    return {**arrays, **texts}


_TEXTS = ("text", "mask_ar", "mask_input")


def by_length(
  lengths: np.ndarray, batch_size: int, text_len: int, window: int | None = None
) -> Order:
  """Longest prompts first, if that saves enough; else the order of the split.

  lengths: of the prompts; text_len: with padding. window: sorts this number of batches at a time,
  so that answers can be reported in the order of the split before all of them are known.
  """
  total, num_batches = len(lengths), -(-len(lengths) // batch_size)
  longest = _rounded(lengths.max(initial=1), text_len)
  plain = Order(np.arange(total))
  if text_len - longest >= MIN_SAVED:
    plain = plain._replace(text_lens=np.full(num_batches, longest))
  if num_batches < MIN_BATCHES:
    return plain
  step = batch_size * (window or num_batches)
  parts = (np.argsort(-lengths[i : i + step], kind="stable") + i for i in range(0, total, step))
  examples = np.concatenate(list(parts))
  needed = _rounded(np.maximum.reduceat(lengths[examples], range(0, total, batch_size)), text_len)
  options = [np.where(needed <= short, short, longest) for short in np.unique(needed)]
  best = min(options, key=np.sum)
  saved = longest - best.mean()
  return Order(examples, best) if saved >= MIN_SAVED else plain


def may_save(lengths: np.ndarray, text_len: int) -> bool:
  """Whether sorting can be worth it, from a sample of the lengths."""
  return text_len - _rounded(lengths, text_len).mean() >= MIN_SAVED


def _rounded(lengths, text_len):
  """Up to a multiple; text_len at most, unless pp makes longer texts."""
  multiple = -(-lengths // MULTIPLE) * MULTIPLE
  return np.maximum(np.minimum(multiple, text_len), lengths)
