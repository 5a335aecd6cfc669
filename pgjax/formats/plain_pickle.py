"""What plain data does a pickle from outside hold, read without running any of it?

A pickle is a program: it can import and call anything. This reader has the instructions that build
lists, dicts, numbers, texts, booleans and None, of every protocol and of Python 2, and no other.
The first instruction that would do anything else, such as naming a function, is refused by name.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from pgjax.errors import UserError, cut
from pgjax.formats import input_files

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_MARK = object()
_MOST_DIGITS = 100  # Of a number written as text: its cost grows with the square.


def read(path: str, *, most: int = input_files.MAX_BYTES) -> Any:
  """The data of a pickle file; raises UserError for anything but plain data."""
  return decode(input_files.file_bytes(path, most=most), path)


def decode(data: bytes, where: Any) -> Any:
  """The data of a pickle; `where` begins the sentence of an error."""
  machine = _Machine(data)
  try:
    return machine.run()
  except _RefusedError as error:
    raise UserError(
      f"{where}, byte {machine.start}: this pickle {error}, so it is not read. Only lists, dicts,"
      " numbers and texts are: take the file of the official download."
    ) from None
  except (ValueError, IndexError, KeyError, TypeError, struct.error, RecursionError):
    raise UserError(
      f"{where} is damaged at byte {machine.start} of {len(data):,}: it is not a pickle, or half"
      " of a download. Download it again."
    ) from None


class _RefusedError(Exception):
  """A pickle that does more than build plain data; the text says what."""


class _Machine:
  """Runs the instructions of one pickle; `start` is the position of the current one."""

  def __init__(self, data: bytes):
    self.data, self.at, self.start = data, 0, 0
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def run(self):
    handlers, data = _HANDLERS, self.data
    while True:
      self.start = self.at
      code = data[self.at]
      self.at += 1
      if code == 0x2E:  # STOP
        (value,) = self.stack
        if value is _MARK:
          raise ValueError("a mark is no value")
        return value
      handler = handlers.get(code)
      if handler is None:
        raise _RefusedError(self.refusal(code))
      handler(self)

  def refusal(self, code):
    """What an instruction that is not allowed would do."""
    name = _NAMES.get(code)
    if name is None:
      raise ValueError("no instruction")
    if name in ("GLOBAL", "INST"):
      module, function = self.line().decode("latin-1"), self.line().decode("latin-1")
      return f"names {cut(f'{module}.{function}')}, which could run code"
    if name == "STACK_GLOBAL" and len(self.stack) >= 2:
      return f"names {cut('.'.join(map(str, self.stack[-2:])))}, which could run code"
    return f"has the instruction {name}"

  def take(self, count):
    """The next bytes."""
    end = self.at + count
    if count < 0 or end > len(self.data):
      raise ValueError("the data ends here")
    taken = self.data[self.at : end]
    self.at = end
    return taken

  def line(self):
    """The next bytes up to a newline."""
    end = self.data.index(b"\n", self.at)
    taken = self.data[self.at : end]
    self.at = end + 1
    return taken

  def since_mark(self):
    """The values above the last mark, taken off the stack with it."""
    stack = self.stack
    at = len(stack) - 1
    while stack[at] is not _MARK:  # IndexError without one.
      at -= 1
      if at < 0:
        raise ValueError("no mark")
    values = stack[at + 1 :]
    del stack[at:]
    return values

  def holder(self, kind):
    """The value on top of the stack, which must be a list or a dict."""
    value = self.stack[-1]
    if type(value) is not kind:
      raise ValueError(f"not a {kind}")
    return value


def _little(size, kind):
  unpack = struct.Struct(kind).unpack_from

  def number(m):
    at = m.at
    m.at = at + size
    return unpack(m.data, at)[0]

  return number


_byte, _short, _int = _little(1, "<B"), _little(2, "<H"), _little(4, "<i")
_uint, _ulong, _float = _little(4, "<I"), _little(8, "<Q"), _little(8, ">d")


def _pushed(value: Callable) -> Callable:
  return lambda m: m.stack.append(value(m))


def _integer(text: bytes):
  digits = text.rstrip(b"L")
  if len(digits) > _MOST_DIGITS:
    raise _RefusedError(f"has a number of {len(digits):,} digits")
  return int(digits)


def _int_line(m):
  text = m.line()
  return {b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else _integer(text)


def _long(m, size):
  if size > _MOST_DIGITS:
    raise _RefusedError(f"has a number of {size:,} bytes")
  return int.from_bytes(m.take(size), "little", signed=True)


def _python2_text(data: bytes) -> str:
  return data.decode()  # Python 2 has one type for texts and bytes: here, it must be a text.


def _quoted(m):
  text = m.line().strip()
  if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
    raise ValueError("no quotes")
  return _python2_text(text[1:-1].decode("unicode_escape").encode("latin-1"))


def _get(key):
  return _pushed(lambda m: m.memo[key(m)])


def _put(key):
  def put(m):
    value = m.stack[-1]
    if value is _MARK:
      raise ValueError("a mark is no value")
    m.memo[key(m)] = value

  return put


def _append(m):
  value = m.stack.pop()
  m.holder(list).append(value)


def _appends(m):
  values = m.since_mark()
  m.holder(list).extend(values)


def _filled(m, holder, values):
  if len(values) % 2:
    raise ValueError("a key without a value")
  for key in values[::2]:
    if type(key) not in (str, int, bool, float, type(None)):
      raise ValueError("a key that is no text or number")
  holder.update(zip(values[::2], values[1::2], strict=True))
  return holder


def _setitem(m):
  values = m.stack[-2:]
  del m.stack[-2:]
  _filled(m, m.holder(dict), values)


def _setitems(m):
  values = m.since_mark()
  _filled(m, m.holder(dict), values)


def _code(name: str) -> int:
  return next(code for code, known in _NAMES.items() if known == name)


_HANDLERS: dict[int, Callable[[_Machine], Any]] = {
  _code(name): handler
  for name, handler in {
    "PROTO": _byte,
    "FRAME": _ulong,
    "MARK": lambda m: m.stack.append(_MARK),
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "INT": _pushed(_int_line),
    "LONG": _pushed(lambda m: _integer(m.line())),
    "FLOAT": _pushed(lambda m: float(m.line())),
    "BININT": _pushed(_int),
    "BININT1": _pushed(_byte),
    "BININT2": _pushed(_short),
    "LONG1": _pushed(lambda m: _long(m, _byte(m))),
    "LONG4": _pushed(lambda m: _long(m, _int(m))),
    "BINFLOAT": _pushed(_float),
    "STRING": _pushed(_quoted),
    "BINSTRING": _pushed(lambda m: _python2_text(m.take(_int(m)))),
    "SHORT_BINSTRING": _pushed(lambda m: _python2_text(m.take(_byte(m)))),
    "UNICODE": _pushed(lambda m: m.line().decode("raw-unicode-escape")),
    "BINUNICODE": _pushed(lambda m: m.take(_uint(m)).decode()),
    "SHORT_BINUNICODE": _pushed(lambda m: m.take(_byte(m)).decode()),
    "BINUNICODE8": _pushed(lambda m: m.take(_ulong(m)).decode()),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "LIST": _pushed(lambda m: m.since_mark()),
    "DICT": _pushed(lambda m: _filled(m, {}, m.since_mark())),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "GET": _get(lambda m: int(m.line())),
    "BINGET": _get(_byte),
    "LONG_BINGET": _get(_uint),
    "PUT": _put(lambda m: int(m.line())),
    "BINPUT": _put(_byte),
    "LONG_BINPUT": _put(_uint),
    "MEMOIZE": _put(lambda m: len(m.memo)),
  }.items()
}
