"""Which ops make texts, ids and the rest of an example?

Factories for the dict OPS of parse.py: arguments in, a function from example to example out.
Random ones draw from the example's own generator, which is seeded by `_seed` (a tuple of ints).
"""

import random
import re
import string

import numpy as np

from pgjax.errors import UserError


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


def strfmt(template, outkey="text"):
  """Fills {names} of the template from the example; other than strings print as TensorFlow does."""
  names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]

  def apply(example):
    values = {name: _as_text(example[name]) for name in names}
    example[outkey] = re.sub(r"\{([^{}]*)\}", lambda match: values[match[1]], template)
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


def lower(*, key=None, inkey="text", outkey="text"):
  """Lower case of the ASCII letters alone, as TensorFlow's; of a text or of each in a list."""
  inkey, outkey = key or inkey, key or outkey
  table = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

  def apply(example):
    value = example[inkey]
    single = isinstance(value, str)
    example[outkey] = value.translate(table) if single else [v.translate(table) for v in value]
    return example

  return apply


def tok(
  model=None, length=None, *, bos="no", eos="no", text=None, key=None, inkey=None, outkey=None,
  tokenizer=None,
):  # fmt: skip
  """Text -> int32 ids, with the run's tokenizer whatever `model` says; cut or padded to `length`.

  eos="sticky" keeps the eos of a text that is cut.
  """
  del model  # big_vision names its Gemma tokenizer here; ours is config.tokenizer.
  inkey, outkey = (key if text is None else None) or inkey, key or outkey
  if tokenizer is None:
    raise UserError("tok needs a tokenizer, and none was given to the op string.")
  if outkey is None or (text is None) == (inkey is None):
    raise UserError("tok takes key=, or outkey= with inkey=; with text= no inkey=.")

  def encode(value):
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
  length, *, sticky_end=False, pad_value=None, pad_key=None, key=None, inkey=None, outkey=None
):
  """A vector cut or padded at its end; what was cut is counted by the pipeline."""
  inkey, outkey = key or inkey, key or outkey

  def apply(example):
    values = np.asarray(example[inkey])
    if length and len(values) > length:
      example["_num_tokens"] = max(len(values), example.get("_num_tokens", 0))
    pad = np.ravel(example[pad_key])[0] if pad_key else pad_value or 0
    example[outkey] = _fit(values, length, pad, sticky_end) if length else values
    return example

  return apply


def masked_concat(keys, outkey="text", **masks):
  """Joins id vectors, and makes for each mask a vector that is constant over each of them."""

  def apply(example):
    parts = [example[name] for name in keys]
    example[outkey] = np.concatenate(parts)
    lengths = [len(part) for part in parts]
    for name, values in masks.items():
      example[name] = np.repeat(np.asarray(values, np.int32), lengths)
    return example

  return apply


# Any value


def copy(inkey, outkey):
  """The same value under a second name."""

  def apply(example):
    example[outkey] = example[inkey]
    return example

  return apply


def keep(*keys):
  """Drops all other names; a name that is not there is no mistake."""
  return lambda example: {k: v for k, v in example.items() if k in keys or k.startswith("_")}


def drop(*keys):
  """Drops these names; a name that is not there is no mistake."""
  return lambda example: {k: v for k, v in example.items() if k not in keys}


def setdefault(key, value):
  """The value, where the name is missing or holds nothing."""

  def apply(example):
    if example.get(key) is None or np.size(example[key]) == 0:
      example[key] = value
    return example

  return apply


def flatten(keys=None):
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


def reshape(new_shape, *, key=None, inkey="image", outkey="image"):
  """Another shape for the same values; [] makes one element a scalar."""
  inkey, outkey = key or inkey, key or outkey

  def apply(example):
    value = np.reshape(np.asarray(example[inkey]), tuple(new_shape))
    example[outkey] = value.item() if value.ndim == 0 else value
    return example

  return apply


def choice(n="single", *, key=None, inkey=None, outkey=None):
  """One of several at random, with the same index for all listed names; or n of them in order."""
  names = key or inkey
  names = [names] if isinstance(names, str) else list(names)
  targets = outkey or names
  targets = [targets] * len(names) if isinstance(targets, str) else list(targets)

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


def choice_no_replacement(*, key=None, inkey=None, outkey=None):
  """One of several, each once before any repeats; needs the epoch, which the pipeline gives."""
  inkey, outkey = key or inkey, key or outkey or inkey

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
