"""Pickles of plain data are read; what could run code is refused by name, before it runs."""

import collections
import contextlib
import pickle
import random
import struct

import pytest

from pgjax.errors import UserError
from pgjax.formats import plain_pickle


def plain(draw, depth=0):
  """Nested lists and dicts of numbers and texts."""
  kind = draw.randrange(7 if depth < 3 else 4)
  if kind < 2:
    numbers = (0, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**70), 0.1, -1e300, True, None)
    return draw.choice(numbers)
  if kind < 4:
    size = draw.choice((0, 1, 7, 300))
    return "".join(draw.choice("abÄ\n'\"\\é日😀\t ") for _ in range(size))
  inner = [plain(draw, depth + 1) for _ in range(draw.randrange(5))]
  return inner if kind < 6 else dict(enumerate(inner)) | {"k": inner}


def test_plain_data_is_read_as_pickle_reads_it():
  draw = random.Random(0)
  for _ in range(40):
    value = plain(draw)
    for protocol in range(6):
      assert repr(plain_pickle.decode(pickle.dumps(value, protocol), "x")) == repr(value)


def test_pickles_of_python_2_are_read():
  """Its str is text here; these are pickle.dumps and cPickle.dumps of {"a": ["b\xc3\xa9", 3L]}."""
  for data in (
    b"(dp0\nS'a'\np1\n(lp2\nS'b\\xc3\\xa9'\np3\naL3L\nas.",
    b"\x80\x02}q\x01U\x01aq\x02]q\x03(U\x03b\xc3\xa9q\x04\x8a\x01\x03es.",
  ):
    assert plain_pickle.decode(data, "x") == {"a": ["bé", 3]}


class Attack:
  def __reduce__(self):
    return print, ("run",)


@pytest.mark.parametrize("protocol", range(6))
def test_what_could_run_code_is_refused_by_name(protocol, capsys):
  for value, name in [
    ([{"a": Attack()}], r"names (__builtin__|builtins)\.print,"),
    ({"a": collections.OrderedDict(a=1)}, r"names collections\.OrderedDict,"),
    ([struct.Struct], r"names _struct\.Struct,"),
    ([(1, 2)], "instruction (TUPLE|TUPLE2)"),
    ([b"bytes"], r"names _codecs\.encode|instruction SHORT_BINBYTES"),
  ]:
    with pytest.raises(UserError, match=f"x, byte \\d+: this pickle .*{name}"):
      plain_pickle.decode(pickle.dumps(value, protocol), "x")
  assert capsys.readouterr().out == ""


def test_rare_instructions_are_refused_too():
  for data, name in [
    (b"(S'echo'\nios\nsystem\n.", r"names os\.system"),
    (b"cos\nsystem\n(S'echo'\ntR.", r"names os\.system"),
    (b"\x80\x02\x82\x01.", "EXT1"),
    (b"Pid\n.", "PERSID"),
    (b"]0.", "POP"),
    (b"\x8b" + struct.pack("<i", 1 << 30) + b"x.", "number of 1,073,741,824 bytes"),
    (b"L" + b"9" * 5000 + b"L\n.", "number of 5,000 digits"),
  ]:
    with pytest.raises(UserError, match=name):
      plain_pickle.decode(data, "x")


def test_damaged_pickles_end_in_a_sentence():
  data = pickle.dumps([{"a": [1, 2.5, "text"], "b": {"c": None}}] * 3, 2)
  draw = random.Random(0)
  damaged = [data[:n] for n in range(len(data))]
  for _ in range(1000):
    copy = bytearray(data)
    copy[draw.randrange(len(copy))] = draw.randrange(256)
    damaged.append(bytes(copy))
  for bad in damaged[: len(data)]:
    with pytest.raises(UserError, match="is damaged at byte"):
      plain_pickle.decode(bad, "x")
  for bad in damaged[len(data) :]:
    with contextlib.suppress(UserError):
      plain_pickle.decode(bad, "x")
