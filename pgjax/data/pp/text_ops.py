"""Which ops work on texts, token ids and other values? Factories, as in parse.py."""

import random
import re
import string
from typing import Annotated, Literal, TypedDict, Unpack

import numpy as np

from pgjax.call_syntax import Between, Given
from pgjax.errors import UserError

Name = Annotated[str, Between(1, 1000)]  # Key of a value in the example.
Names = Annotated[list[Name], Between(1, 100)]
_Length = Annotated[int, Between(0, 1_000_000)]
_Scalar = str | float | bool | None
_Whole = Annotated[int, Between(-(2**31), 2**31 - 1)]
_FIELD = re.compile(r"\{([^{}]*)\}")


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
  """Fills {names} of the template from the example; non-strings print as in TensorFlow."""
  names = _FIELD.findall(template)
  if "" in names or set("{}") & set(_FIELD.sub("", template)):
    raise UserError("a template has braces only around names, such as {question}.")

  def apply(example):
    values = {name: _as_text(example[name], name) for name in names}
    return example | {outkey: _FIELD.sub(lambda match: values[match[1]], template)}

  return apply


def _as_text(value, name: str) -> str:
  if isinstance(value, str):
    return value
  if value is None:
    raise UserError(f"'{name}' is null; setdefault({name!r}, '...') before strfmt gives it a value")
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      raise UserError(f"'{name}' is bytes that are no UTF-8 text") from None
  array = np.asarray(value)
  if array.ndim == 0:
    return str(array.item())
  return "[" + " ".join(_as_text(v, name) for v in array) + "]"


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
  pad_value: _Whole | None = None,
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


def masked_concat(keys: Names, outkey: Name = "text", **masks: list[_Whole]):
  """Joins id vectors, and for each mask repeats its numbers over their lengths."""
  if wrong := [name for name, values in masks.items() if len(values) != len(keys)]:
    raise UserError(f"{wrong[0]} must have one number for each of the {len(keys)} keys.")

  def apply(example):
    parts = [example[name] for name in keys]
    lengths = [len(part) for part in parts]
    repeated = {n: np.repeat(np.asarray(values, np.int32), lengths) for n, values in masks.items()}
    return example | {outkey: np.concatenate(parts)} | repeated

  return apply


def copy(inkey: Name, outkey: Name):
  """Stores the value under a second name."""
  return lambda example: example | {outkey: example[inkey]}


def keep(*keys: Name):
  """Drops all other names; missing names are ignored."""
  return lambda example: {k: v for k, v in example.items() if k in keys or k.startswith("_")}


def drop(*keys: Name):
  """Drops these names; missing names are ignored."""
  return lambda example: {k: v for k, v in example.items() if k not in keys}


def setdefault(key: Name, value: _Scalar | list[_Scalar] | list[list[_Scalar]]):
  """Sets the value where the name is missing or its value is empty."""

  def apply(example):
    empty = example.get(key) is None or np.size(example[key]) == 0
    return example | {key: value} if empty else example

  return apply


def flatten(keys: Names | None = None):
  """Flattens nested dicts to names joined by slashes; all, or only these top-level names."""

  def apply(example):
    flat = {}
    for name, value in example.items():
      flat |= _flat(name, value) if keys is None or name in keys else {name: value}
    return flat

  return apply


def _flat(name, value):
  if not isinstance(value, dict):
    return {name: value}
  return {k: v for key, inner in value.items() for k, v in _flat(f"{name}/{key}", inner).items()}


def reshape(
  new_shape: Annotated[list[Annotated[int, Between(-1, 2**31 - 1)]], Between(0, 8)],
  **route: Unpack[Route],
):
  """Reshapes an array; [] turns a single element into a scalar."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    try:
      value = np.reshape(np.asarray(example[inkey]), tuple(new_shape))
    except ValueError as error:
      raise UserError(f"reshape({new_shape}) of '{inkey}': {error}") from None
    return example | {outkey: value.item() if value.ndim == 0 else value}

  return apply


def choice(
  n: Literal["single"] | Annotated[int, Between(1, 10_000)] = "single",
  *,
  key: Name | Names | None = None,
  inkey: Name | Names | None = None,
  outkey: Name | Names | None = None,
):
  """Picks one element at random, at the same index for all listed names; or n of them in order."""
  names = key or inkey
  if names is None:
    raise UserError("it takes key= or inkey=.")
  names = [names] if isinstance(names, str) else list(names)
  targets = outkey or names
  targets = [targets] * len(names) if isinstance(targets, str) else list(targets)
  if len(targets) != len(names):
    raise UserError(f"outkey must have a name for each of the {len(names)} of inkey.")

  def apply(example):
    count = len(example[names[0]])
    if count < (1 if n == "single" else n):
      raise UserError(f"choice({n!r}) from '{names[0]}', which has {count} elements")
    rng = example_rng(example)
    picked = [rng.randrange(count)] if n == "single" else sorted(rng.sample(range(count), n))
    for name, target in zip(names, targets, strict=True):
      values = [example[name][i] for i in picked]
      example = example | {target.replace("{key}", name): values[0] if n == "single" else values}
    return example

  return apply


def choice_no_replacement(**route: Unpack[Route]):
  """Picks an element at random, each once before any repeats over epochs."""
  inkey, outkey = routed({"outkey": route.get("inkey")} | route)

  def apply(example):
    values = example[inkey]
    if len(values) == 0:
      raise UserError(f"choice_no_replacement from '{inkey}', which is empty")
    seed, dataset, index = example["_seed"][:3]
    round_number, offset = divmod(example["_epoch"], len(values))
    order = seeded(seed, dataset, index, round_number).sample(range(len(values)), len(values))
    return example | {outkey: values[order[offset]]}

  return apply


TEXT_OPS = (strfmt, lower, tok, tolen, masked_concat)
VALUE_OPS = (copy, keep, drop, setdefault, flatten, reshape, choice, choice_no_replacement)
