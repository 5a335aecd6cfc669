"""Which ops work on texts and token ids? Factories, as in parse.py."""

import random
import string
from typing import Annotated, Literal, TypedDict, Unpack

import numpy as np

from pgjax.call_syntax import Between, Given
from pgjax.errors import UserError

Name = Annotated[str, Between(1, 1000)]  # Key of a value in the example.
Names = Annotated[list[Name], Between(1, 100)]
_Length = Annotated[int, Between(0, 1_000_000)]
Whole = Annotated[int, Between(-(2**31), 2**31 - 1)]


class Route(TypedDict):
  """The name that an op reads and the name that it writes; `key` is both."""

  key: Name
  inkey: Name
  outkey: Name


def routed(route: Route, default: str | None = None) -> tuple[str, str]:
  """(the name to read, the name to write)."""
  inkey, outkey = (route.get("key") or route.get(n) or default for n in ("inkey", "outkey"))
  if not (inkey and outkey):
    raise UserError("it takes key=, or inkey= and outkey=.")
  return inkey, outkey


def example_rng(example) -> random.Random:
  """The example's own generator, from `_seed`; Python's is faster to make than numpy's."""
  if "_rng" not in example:
    example["_rng"] = seeded(*example["_seed"])
  return example["_rng"]


def seeded(*numbers: int) -> random.Random:
  """A generator for these numbers of up to 64 bits each."""
  return random.Random(b"".join(number.to_bytes(8, "little") for number in numbers))


def strfmt(template: str, outkey: Name = "text"):
  """Fills {names} of the template from the example; {{ and }} are braces.

  Numbers print as in TensorFlow: 0.1 of float32 as 0.1, True as 1, a vector as [1 2 3]. A list of
  texts gives a list.
  """
  parts = _template(template)

  def apply(example):
    columns = {name: _as_text(example[name], name) for _, name in parts if name}
    counts = {len(value) for value in columns.values() if isinstance(value, list)}
    if len(counts) > 1:
      raise UserError(f"the lists of texts in {template!r} have different lengths, {counts}")

    def filled(i):
      values = {n: v[i] if isinstance(v, list) else v for n, v in columns.items()}
      return "".join(literal + values.get(name, "") for literal, name in parts)

    return example | {outkey: [filled(i) for i in range(*counts)] if counts else filled(0)}

  return apply


def _template(template: str) -> list[tuple[str, str]]:
  """Pairs of a text and the name after it, which is empty at the end."""
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError:
    parts = [("", "", "", "")]
  if any(name == "" or form or conversion for _, name, form, conversion in parts):
    raise UserError(
      "a template has braces only around names, such as {question}; {{ and }} are braces."
    )
  return [(literal, name or "") for literal, name, _, _ in parts]


def _as_text(value, name: str) -> str | list[str]:
  if isinstance(value, str):
    return value
  if value is None:
    raise UserError(f"'{name}' is null; setdefault({name!r}, '...') before strfmt gives it a value")
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      raise UserError(f"'{name}' is bytes that are no UTF-8 text") from None
  if is_texts(value):
    return [_as_text(each, name) for each in value]
  return number_text(value)


def number_text(value) -> str:
  """A number or array as tf.strings.format prints it; Python's floats are float32 there."""
  array = np.asarray(value)
  if array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
    array = array.astype(np.float32)
  return _printed(array, 0)


def _printed(array: np.ndarray, depth: int) -> str:
  if array.ndim:
    between = " " if array.ndim == 1 else "\n" * (array.ndim - 1) + " " * (depth + 1)
    return f"[{between.join(_printed(each, depth + 1) for each in array)}]"
  if array.dtype.kind != "f":
    return str(int(array)) if array.dtype.kind in "biu" else str(array.item())
  number = float(array)
  short, long = (15, 17) if array.dtype == np.float64 else (6, 9)
  text = f"{number:.{short}g}"
  return text if array.dtype.type(text) == array else f"{number:.{long}g}"


def is_texts(value) -> bool:
  """Whether the value is a list or an array of texts."""
  return isinstance(value, list | tuple | np.ndarray) and any(
    isinstance(each, str | bytes) for each in value
  )


def strjoin(glue: str, axis: Annotated[int, Between(-8, 7)] | None = None, **route: Unpack[Route]):
  """Joins a list of texts to one, with `glue` between them."""
  inkey, outkey = routed(route, "image")

  def joined(value):
    if isinstance(value, str):
      return value
    if not isinstance(value, list | tuple) or (len(value) and not _are_strings(value)):
      raise UserError(f"strjoin joins a list of texts, and '{inkey}' is {value!r:.100}")
    return glue.join(value)

  def apply(example):
    value = example[inkey]
    value = value.tolist() if isinstance(value, np.ndarray) else value
    nested = isinstance(value, list) and any(isinstance(each, list) for each in value)
    if not nested:
      return example | {outkey: joined(value)}
    if axis is None:
      return example | {outkey: joined([joined(each) for each in value])}
    rows = value if axis in (1, -1) else list(zip(*value, strict=True))
    return example | {outkey: [joined(row) for row in rows]}

  return apply


def _are_strings(values) -> bool:
  return all(isinstance(each, str) for each in values)


def sci_qa_choices_shuffle(
  choice_str_inkey: Name = "choices",
  ans_inkey: Name = "answer",
  indexed_choices_outkey: Name = "indexed_choices",
  indexed_answer_outkey: Name = "indexed_answer",
):
  """Shuffles the choices: "(A) first, (B) second", and the letter of the answer, a whole number."""

  def apply(example):
    choices, answer = example[choice_str_inkey], int(example[ans_inkey])
    if len(choices) > len(string.ascii_uppercase):
      raise UserError(f"'{choice_str_inkey}' has {len(choices)} choices, more than letters")
    order = example_rng(example).sample(range(len(choices)), len(choices))
    letters = string.ascii_uppercase[: len(choices)]
    written = ", ".join(f"({a}) {choices[i]}" for a, i in zip(letters, order, strict=True))
    letter = letters[order.index(answer)] if answer in order else ""
    return example | {indexed_choices_outkey: written, indexed_answer_outkey: letter}

  return apply


def lower(**route: Unpack[Route]):
  """Lower-cases ASCII letters only, as TensorFlow does; in a text or in each of a list."""
  inkey, outkey = routed(route, "text")
  table = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

  def lowered(value):  # null, for no answer, stays null.
    if not isinstance(value, str | None):
      raise UserError(f"lower takes a text or a list of texts, and '{inkey}' is neither")
    return value and value.translate(table)

  def apply(example):
    value = example[inkey]
    many = isinstance(value, list | tuple | np.ndarray)
    return example | {outkey: [lowered(v) for v in value] if many else lowered(value)}

  return apply


def tok(
  model: str | None = None,
  length: _Length | None = None,
  *,
  bos: Literal["no", "yes"] = "no",
  eos: Literal["no", "yes", "sticky"] = "no",
  text: str | None = None,
  tokenizer: Given = None,
  **route: Unpack[Route],
):
  """Text -> int32 ids with the run's tokenizer (`model` is ignored), cut or padded to `length`.

  eos="sticky" preserves the eos of a text that is cut.
  """
  del model  # big_vision names its Gemma tokenizer here; pgjax uses config.tokenizer.
  inkey, outkey = routed(route if text is None else {"inkey": "text"} | route)
  if tokenizer is None:
    raise UserError("tok needs a tokenizer, and none was given to the op string.")
  if text is not None and "inkey" in route:
    raise UserError("text= is a constant, so inkey= has no meaning beside it.")

  def encode(value):
    if not isinstance(value, str | bytes):
      raise UserError(f"tok takes a text, and '{inkey}' is {type(value).__name__}")
    ids = [tokenizer.bos] * (bos == "yes") + tokenizer.encode(value)
    ids += [tokenizer.eos] * (eos in ("yes", "sticky"))
    ids = np.array(ids, np.int32)
    return _fit(ids, length, tokenizer.pad, eos == "sticky") if length else ids

  if text is None:
    return lambda example: example | {outkey: encode(example[inkey])}
  constant = encode(text)
  return lambda example: example | {outkey: constant}


def _fit(values, length, pad, sticky_end):
  if len(values) > length and sticky_end:
    values = np.append(values[: length - 1], values[-1:])
  values = values[:length]
  return np.pad(values, (0, length - len(values)), constant_values=pad)


def tolen(
  length: _Length | None,
  *,
  sticky_end: bool = False,
  pad_value: Whole | None = None,
  pad_key: Name | None = None,
  **route: Unpack[Route],
):
  """Cuts or pads a vector at its end; the pipeline counts cut texts."""
  inkey, outkey = routed(route)

  def apply(example):
    values = np.asarray(example[inkey])
    if length and len(values) > length:
      example["_num_tokens"] = max(len(values), example.get("_num_tokens", 0))
    pad = np.ravel(example[pad_key])[0] if pad_key else pad_value or 0
    return example | {outkey: _fit(values, length, pad, sticky_end) if length else values}

  return apply


def masked_concat(keys: Names, outkey: Name = "text", **masks: list[Whole]):
  """Joins id vectors, and for each mask repeats its numbers over their lengths."""
  if wrong := [name for name, values in masks.items() if len(values) != len(keys)]:
    raise UserError(f"{wrong[0]} must have one number for each of the {len(keys)} keys.")

  def apply(example):
    parts = [example[name] for name in keys]
    lengths = [len(part) for part in parts]
    repeated = {n: np.repeat(np.asarray(values, np.int32), lengths) for n, values in masks.items()}
    return example | {outkey: np.concatenate(parts)} | repeated

  return apply


OPS = (strfmt, strjoin, lower, tok, tolen, masked_concat, sci_qa_choices_shuffle)
