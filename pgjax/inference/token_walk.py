"""Which tokens lead from where to where in an automaton over bytes, such as that of JSON?

Most tokens of a vocabulary differ only in letters that the automaton does not distinguish. One of
each such group stands for the others, so that 257,152 tokens are walked as some thousands.
"""

from typing import Any, NamedTuple

import numpy as np

_PAD = np.uint16(0xFFFF)  # After the end of a token; bytes have at most 256 classes.


class Groups(NamedTuple):
  """The tokens of a tokenizer, grouped for one automaton.

  Attributes:
    stands_V: int32 [V], the token that stands for each; -1 for those without text.
    tokens_N: int32 [N], the tokens that stand for others, in the order of their first byte's class.
    classes_NL: uint16 [N, L], the classes of their bytes, then _PAD at least once.
    first_C: int [C + 1], where the tokens of each first class begin.
  """

  stands_V: np.ndarray
  tokens_N: np.ndarray
  classes_NL: np.ndarray
  first_C: np.ndarray


class Step(NamedTuple):
  """From one place of the automaton to another, by any of these of Groups.tokens_N."""

  source: int
  tokens: np.ndarray
  target: int


def grouped(tokenizer: Any, next_P256: np.ndarray) -> tuple[Groups, np.ndarray]:
  """(groups of tokens that the automaton does not distinguish, int32 [P, C] its steps by class)."""
  steps_CP, class_256 = np.unique(next_P256.T, axis=0, return_inverse=True)
  ids_N, bytes_NL, lengths_N = _token_bytes(tokenizer)
  classes_NL = np.full((len(ids_N), bytes_NL.shape[1] + 1), _PAD)
  classes_NL[:, :-1] = class_256.reshape(-1)[bytes_NL]
  classes_NL[np.arange(classes_NL.shape[1]) >= lengths_N[:, None]] = _PAD
  numbers: dict[bytes, int] = {}  # A dict: sorting such long rows takes seconds.
  group_N = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in classes_NL])
  first = np.unique(group_N, return_index=True)[1]
  order = np.argsort(classes_NL[first, 0], kind="stable")
  stands_V = np.full(tokenizer.vocab_size, -1, np.int32)
  stands_V[ids_N] = ids_N[first][group_N]
  first = first[order]
  starts = np.searchsorted(classes_NL[first, 0], np.arange(len(steps_CP) + 1))
  return Groups(stands_V, ids_N[first], classes_NL[first], starts), steps_CP.T


def steps(groups: Groups, next_PC: np.ndarray) -> list[Step]:
  """All steps by whole tokens; `next_PC` is negative where a byte is not allowed."""
  found = []
  for place, steps_C in enumerate(next_PC):
    allowed = np.flatnonzero(steps_C >= 0)
    ranges = [np.arange(groups.first_C[c], groups.first_C[c + 1]) for c in allowed]
    live = np.concatenate(ranges) if ranges else np.zeros(0, int)
    at, depth = np.full(len(live), place), 0
    while len(live):
      done = groups.classes_NL[live, depth] == _PAD
      found += [
        Step(place, groups.tokens_N[live[done & (at == target)]], int(target))
        for target in np.unique(at[done])
      ]
      live, at = live[~done], at[~done]
      at = next_PC[at, groups.classes_NL[live, depth]]
      live, at, depth = live[at >= 0], at[at >= 0], depth + 1
  return found


def _token_bytes(tokenizer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(the tokens that are text [N], uint8 [N, longest] their bytes before zeros, lengths [N])."""
  texts = {}
  for token, piece in enumerate(tokenizer.pieces()):
    if piece.kind == "byte":
      texts[token] = bytes([int(piece.text[3:5], 16)])  # <0x41>
    elif piece.kind in ("normal", "user_defined"):
      texts[token] = piece.text.replace("▁", " ").encode()
  texts = {token: text for token, text in texts.items() if text}
  lengths = np.array([len(text) for text in texts.values()])
  longest = int(lengths.max())
  padded = b"".join(text.ljust(longest, b"\0") for text in texts.values())
  table = np.frombuffer(padded, np.uint8).reshape(len(texts), -1)
  return np.array(list(texts), np.int32), table, lengths
