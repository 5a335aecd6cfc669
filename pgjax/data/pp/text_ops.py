"""Which ops make texts, ids and the rest of an example?

Factories for the dict OPS of parse.py: arguments in, a function from example to example out.
Random ones draw from the example's own generator, which is seeded by `_seed` (a tuple of ints).
"""

import random
import re
import string
from typing import Annotated, Literal, TypedDict, Unpack

import numpy as np

from pgjax.call_syntax import Between, Given
from pgjax.errors import UserError

Name = Annotated[str, Between(1, 1000)]  # Of a value of the example.
Names = Annotated[list[Name], Between(1, 100)]
_Length = Annotated[int, Between(0, 1_000_000)]
_Scalar = str | float | bool | None
_Whole = Annotated[int, Between(-(2**31), 2**31 - 1)]
_FIELD = re.compile(r"\{([^{}]*)\}")


class Route(TypedDict):
  """Which value an op reads, and under which name it writes; `key` is both."""

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
  """The generator of this example; each draw moves it on.

  Python's own, because making one of numpy's for each example costs more than what it is used for.
  """
  if "_rng" not in example:
    example["_rng"] = seeded(*example["_seed"])
  return example["_rng"]


def seeded(*numbers: int) -> random.Random:
  """A generator that differs wherever one of the numbers (of up to 64 bits) does."""
  return random.Random(b"".join(number.to_bytes(8, "little") for number in numbers))


def strfmt(template: str, outkey: Name = "text"):
  """Fills {names} of the template from the example; other than strings print as TensorFlow does."""
  names = _FIELD.findall(template)
  if "" in names or set("{}") & set(_FIELD.sub("", template)):
    raise UserError("a template has braces only around names, such as {question}.")

  def apply(example):
    values = {name: _as_text(example[name]) for name in names}
    example[outkey] = _FIELD.sub(lambda match: values[match[1]], template)
    return example

  return apply


def _as_text(value) -> str:
  if isinstance(value, str):
    return value
  if isinstance(value, bytes):
    return value.decode()
  array = np.asarray(value)
  if array.ndim == 0:
    return str(array.item())
  return "[" + " ".join(_as_text(v) for v in array) + "]"


def lower(**route: Unpack[Route]):
  """Lower case of the ASCII letters alone, as TensorFlow's; of a text or of each in a list."""
  inkey, outkey = routed(route, "text")
  table = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

  def apply(example):
    value = example[inkey]
    single = isinstance(value, str)
    if not single and not (np.ndim(value) == 1 and all(isinstance(v, str) for v in value)):
      raise UserError(f"lower takes a text or a list of texts, and '{inkey}' is neither")
    example[outkey] = value.translate(table) if single else [v.translate(table) for v in value]
    return example

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
  """Text -> int32 ids, with the run's tokenizer whatever `model` says; cut or padded to `length`.

  eos="sticky" keeps the eos of a text that is cut.
  """
  del model  # big_vision names its Gemma tokenizer here; ours is config.tokenizer.
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

  constant = encode(text) if text is not None else None

  def apply(example):
    example[outkey] = constant if constant is not None else encode(example[inkey])
    return example

  return apply


def _fit(values, length, pad, sticky_end):
  if len(values) > length:
    end = values[-1]
    values = values[:length].copy()
    values[-1] = end if sticky_end else values[-1]
  return np.pad(values, (0, length - len(values)), constant_values=pad)


def tolen(
  length: _Length | None,
  *,
  sticky_end: bool = False,
  pad_value: _Whole | None = None,
  pad_key: Name | None = None,
  **route: Unpack[Route],
):
  """A vector cut or padded at its end; what was cut is counted by the pipeline."""
  inkey, outkey = routed(route)

  def apply(example):
    values = np.asarray(example[inkey])
    if length and len(values) > length:
      example["_num_tokens"] = max(len(values), example.get("_num_tokens", 0))
    pad = np.ravel(example[pad_key])[0] if pad_key else pad_value or 0
    example[outkey] = _fit(values, length, pad, sticky_end) if length else values
    return example

  return apply


def masked_concat(keys: Names, outkey: Name = "text", **masks: list[_Whole]):
  """Joins id vectors, and makes for each mask a vector that is constant over each of them."""
  if wrong := [name for name, values in masks.items() if len(values) != len(keys)]:
    raise UserError(f"{wrong[0]} must have one number for each of the {len(keys)} keys.")

  def apply(example):
    parts = [example[name] for name in keys]
    example[outkey] = np.concatenate(parts)
    lengths = [len(part) for part in parts]
    for name, values in masks.items():
      example[name] = np.repeat(np.asarray(values, np.int32), lengths)
    return example

  return apply


# Any value


def copy(inkey: Name, outkey: Name):
  """The same value under a second name."""

  def apply(example):
    example[outkey] = example[inkey]
    return example

  return apply


def keep(*keys: Name):
  """Drops all other names; a name that is not there is no mistake."""
  return lambda example: {k: v for k, v in example.items() if k in keys or k.startswith("_")}


def drop(*keys: Name):
  """Drops these names; a name that is not there is no mistake."""
  return lambda example: {k: v for k, v in example.items() if k not in keys}


def setdefault(key: Name, value: _Scalar | list[_Scalar] | list[list[_Scalar]]):
  """The value, where the name is missing or holds nothing."""

  def apply(example):
    if example.get(key) is None or np.size(example[key]) == 0:
      example[key] = value
    return example

  return apply


def flatten(keys: Names | None = None):
  """Nested dicts to names joined by slashes; all, or only these top-level names."""

  def apply(example):
    flat = {}
    for name, value in example.items():
      nested = isinstance(value, dict) and (keys is None or name in keys)
      flat.update(_flat(name, value) if nested else {name: value})
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
  """Another shape for the same values; [] makes one element a scalar."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    try:
      value = np.reshape(np.asarray(example[inkey]), tuple(new_shape))
    except ValueError as error:
      raise UserError(f"reshape({new_shape}) of '{inkey}': {error}") from None
    example[outkey] = value.item() if value.ndim == 0 else value
    return example

  return apply


def choice(
  n: Literal["single"] | Annotated[int, Between(1, 10_000)] = "single",
  *,
  key: Name | Names | None = None,
  inkey: Name | Names | None = None,
  outkey: Name | Names | None = None,
):
  """One of several at random, with the same index for all listed names; or n of them in order."""
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
    picked = rng.randrange(count) if n == "single" else sorted(rng.sample(range(count), n))
    for name, target in zip(names, targets, strict=True):
      value = example[name]
      values = value[picked] if n == "single" else [value[i] for i in picked]
      example[target.replace("{key}", name)] = values
    return example

  return apply


def choice_no_replacement(**route: Unpack[Route]):
  """One of several, each once before any repeats; needs the epoch, which the pipeline gives."""
  inkey, outkey = routed({"outkey": route.get("inkey")} | route)

  def apply(example):
    values = example[inkey]
    if len(values) == 0:
      raise UserError(f"choice_no_replacement from '{inkey}', which is empty")
    seed, dataset, index = example["_seed"][:3]
    round_number, offset = divmod(example["_epoch"], len(values))
    rng = seeded(seed, dataset, index, round_number)
    example[outkey] = values[rng.sample(range(len(values)), len(values))[offset]]
    return example

  return apply
