"""Which ops move, pick and reshape values of any type? Factories, as in parse.py."""

from collections import Counter
from typing import Annotated, Literal, Unpack

import numpy as np

from pgjax.call_syntax import Between
from pgjax.data.pp import text_ops
from pgjax.data.pp.text_ops import Name, Names, Route, Whole, routed
from pgjax.errors import UserError
from pgjax.formats import input_files

_Scalar = str | float | bool | None
_Shape = Annotated[list[Annotated[int, Between(-1, 2**31 - 1)]], Between(0, 8)]
_MAX_LOOKUP_BYTES = 1 << 30


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


def reshape(new_shape: _Shape, **route: Unpack[Route]):
  """Reshapes an array; [] turns a single element into a scalar."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    try:
      value = np.reshape(np.asarray(example[inkey]), tuple(new_shape))
    except ValueError as error:
      raise UserError(f"reshape({new_shape}) of '{inkey}': {error}") from None
    return example | {outkey: value.item() if value.ndim == 0 else value}

  return apply


def squeeze_last_dim(**route: Unpack[Route]):
  """Drops the last axis, of length 1."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    value = np.asarray(example[inkey])
    if value.ndim == 0 or value.shape[-1] != 1:
      raise UserError(f"squeeze_last_dim of '{inkey}', whose shape {value.shape} does not end in 1")
    value = value[..., 0]
    return example | {outkey: value.item() if value.ndim == 0 else value}

  return apply


def concat(inkeys: Names, outkey: Name | None = None, axis: Whole = -1):
  """Joins arrays along an axis, into `outkey` or the first name."""

  def apply(example):
    values = [np.asarray(example[name]) for name in inkeys]
    try:
      return example | {outkey or inkeys[0]: np.concatenate(values, axis)}
    except ValueError as error:
      raise UserError(f"concat({list(inkeys)}): {error}") from None

  return apply


def pad_to_shape(
  shape: Annotated[list[Annotated[int, Between(0, 2**31 - 1)] | None], Between(0, 8)],
  pad_value: float = 0,
  where: Literal["before", "after", "both"] = "after",
  **route: Unpack[Route],
):
  """Pads an array to this shape; None leaves an axis as it is."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    value = np.asarray(example[inkey])
    wanted = [n if m is None else m for n, m in zip(value.shape, shape, strict=False)]
    missing = [m - n for n, m in zip(value.shape, wanted, strict=True)]
    if value.ndim != len(shape) or min(missing, default=0) < 0:
      raise UserError(f"pad_to_shape({shape}) of '{inkey}', whose shape is {value.shape}")
    before = {"before": missing, "after": [0] * len(missing), "both": [n // 2 for n in missing]}
    pads = [(n, m - n) for n, m in zip(before[where], missing, strict=True)]
    return example | {outkey: np.pad(value, pads, constant_values=pad_value)}

  return apply


def rag_tensor(**route: Unpack[Route]):
  """Puts the value into a list of one; here, values of any length need no ragged type."""
  inkey, outkey = routed(route, "image")
  return lambda example: example | {outkey: [example[inkey]]}


def getidx(inkey: Name, index_key: Name, outkey: Name | None = None):
  """Takes the element of `inkey` at the index in `index_key`; -1 is the last."""

  def apply(example):
    values, index = example[inkey], int(example[index_key])
    if not -len(values) <= index < len(values):
      raise UserError(
        f"getidx takes element {index} ('{index_key}') of '{inkey}', which has {len(values)}"
      )
    return example | {outkey or inkey: values[index]}

  return apply


def majority(**route: Unpack[Route]):
  """The most frequent element of a list, the earliest of several."""
  inkey, outkey = routed(route, "image")

  def apply(example):
    if len(example[inkey]) == 0:
      raise UserError(f"majority of '{inkey}', which is empty")
    return example | {outkey: Counter(list(example[inkey])).most_common(1)[0][0]}

  return apply


def lookup(mapping: Name, npzkey: Name = "fnames", sep: Name | None = None, **route: Unpack[Route]):
  """Text -> its line number in the file `mapping`, or the number after `sep`; -1 if it is missing.

  big_vision also reads an array `npzkey` of an .npz file, which is refused here.
  """
  del npzkey
  inkey, outkey = routed(route, "image")
  if mapping.endswith(".npz"):
    raise UserError(f"lookup reads text files; write the names of {mapping} to one, one a line.")
  numbers = _mapping(mapping, sep)

  def apply(example):
    value = example[inkey]
    many = isinstance(value, list | tuple | np.ndarray)
    found = np.array([numbers.get(each, -1) for each in (value if many else [value])], np.int64)
    return example | {outkey: found if many else int(found[0])}

  return apply


def _mapping(path: str, sep: str | None) -> dict[str, int]:
  try:
    lines = input_files.read(path, most=_MAX_LOOKUP_BYTES).decode().splitlines()
    if sep is None:
      return {line: i for i, line in enumerate(lines)}
    pairs = (line.split(sep) for line in lines)
    return {name: int(number) for name, number in pairs}
  except (OSError, ValueError, KeyError) as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"lookup cannot read {path} ({reason}); it takes a text a line, or a text, sep={sep!r} and a"
      " whole number."
    ) from None


def onehot(
  depth: Annotated[int, Between(1, 1 << 24)],
  key: Name = "labels",
  key_result: Name | None = None,
  multi: bool = True,
  on: float = 1.0,
  off: float = 0.0,
):
  """Whole numbers -> float32 [depth], `on` at each of them; multi=False: a row for each."""

  def apply(example):
    labels = np.asarray(example[key])
    if multi and labels.ndim:
      if labels.size and not (labels.min() >= 0 and labels.max() < depth):
        raise UserError(f"onehot({depth}) of '{key}', which has numbers outside of 0..{depth - 1}")
      hot = np.bincount(labels.ravel(), minlength=depth) > 0
    else:
      hot = labels[..., None] == np.arange(depth)
    return example | {key_result or key: np.where(hot, np.float32(on), np.float32(off))}

  return apply


def coco_captions(outkey: Name = "captions"):
  """Takes `text` out of the nested `captions` of TFDS's COCO."""
  return lambda example: example | {outkey: example["captions"]["text"]}


def choice(
  n: Literal["single"]
  | Annotated[int, Between(1, 10_000)]
  | tuple[Annotated[int, Between(0, 10_000)], Annotated[int, Between(0, 10_000)]] = "single",
  key: Name | Names | None = None,
  fewer_ok: bool = False,
  inkey: Name | Names | None = None,
  outkey: Name | Names | None = None,
):
  """Picks one element at random, at the same index for all listed names; or n of them in order.

  n=[least, most] picks a random number of them. With `fewer_ok` a shorter list is taken whole.
  """
  names, targets = _targets(key, inkey, outkey)
  least, most = (1, 1) if n == "single" else (n, n) if isinstance(n, int) else n
  if least > most:
    raise UserError(f"n={list(n)} must be [least, most].")

  def apply(example):
    count = _length(example, names)
    if count < (1 if n == "single" else 0 if fewer_ok else least):
      raise UserError(f"choice({n!r}) from '{names[0]}', which has {count} elements")
    rng = text_ops.example_rng(example)
    if n == "single":
      return example | _picked(example, names, targets, rng.randrange(count))
    wanted = min(count, most if least == most else rng.randint(least, most))
    picked = sorted(rng.sample(range(count), wanted))
    many = {}
    for name, target in zip(names, targets, strict=True):
      values = [example[name][i] for i in picked]
      many[target] = (
        np.array(values) if isinstance(example[name], np.ndarray) and values else values
      )
    return example | many

  return apply


def choice_no_replacement(
  key: Name | Names | None = None,
  inkey: Name | Names | None = None,
  outkey: Name | Names | None = None,
):
  """Picks an element at random, each once before any repeats over epochs; as choice, of lists."""
  names, targets = _targets(key, inkey, outkey)

  def apply(example):
    count = _length(example, names)
    if count == 0:
      raise UserError(f"choice_no_replacement from '{names[0]}', which is empty")
    seed, dataset, index = example["_seed"][:3]
    round_number, offset = divmod(example["_epoch"], count)
    order = text_ops.seeded(seed, dataset, index, round_number).sample(range(count), count)
    return example | _picked(example, names, targets, order[offset])

  return apply


def _targets(key, inkey, outkey) -> tuple[list[str], list[str]]:
  """The names to read and to write; {key} in the latter stands for the former."""
  names = inkey or key
  if names is None:
    raise UserError("it takes key= or inkey=.")
  names = [names] if isinstance(names, str) else list(names)
  targets = outkey or key or names
  targets = [targets] * len(names) if isinstance(targets, str) else list(targets)
  if len(targets) != len(names):
    raise UserError(f"outkey must have a name for each of the {len(names)} of inkey.")
  return names, [to.replace("{key}", name) for name, to in zip(names, targets, strict=True)]


def _length(example, names) -> int:
  for name in names:
    if isinstance(example[name], str | bytes) or not hasattr(example[name], "__len__"):
      raise UserError(f"'{name}' is a single value; choice takes a list")
  lengths = {name: len(example[name]) for name in names}
  if len(set(lengths.values())) > 1:
    raise UserError(f"choice takes lists of one length, not {lengths}")
  return lengths[names[0]]


def _picked(example, names, targets, index) -> dict:
  return {target: example[name][index] for name, target in zip(names, targets, strict=True)}


OPS = (
  copy, keep, drop, setdefault, flatten, reshape, squeeze_last_dim, concat, pad_to_shape,
  rag_tensor, getidx, majority, lookup, onehot, coco_captions, choice, choice_no_replacement,
)  # fmt: skip
