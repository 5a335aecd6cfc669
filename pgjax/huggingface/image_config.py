"""How does a Hugging Face folder prepare images, as ops of `pp`, and back?

Read from preprocessor_config.json, or from processor_config.json, where transformers 5 puts it. A
setting that no ops of pgjax equal is refused by its name.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypedDict

from msgspec import Meta

from pgjax import call_syntax
from pgjax.data.pp import parse
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.formats.typed_json import Number

FILES = ("preprocessor_config.json", "processor_config.json")
METHODS = dict(  # Value of --resize -> how `resize` is written after the size.
  bicubic=', method="bicubic"', antialias=", antialias=True", bilinear=""
)
_PRECISE = "decode(precise=True)"
_RESAMPLE = {2: "antialias", 3: "bicubic"}  # Pillow's numbers; it always antialiases.
_NAMES = {0: "nearest", 1: "Lanczos", 4: "box", 5: "Hamming"}
_Level = Number | Annotated[list[Number], Meta(min_length=1, max_length=4)]


class _Images(TypedDict, total=False):
  """An image processor's settings that change pixels."""

  image_processor_type: str | None
  do_resize: bool | None
  size: int | dict[str, int | None] | None
  resample: int | None
  do_rescale: bool | None
  rescale_factor: Number | None
  do_normalize: bool | None
  image_mean: _Level | None
  image_std: _Level | None
  do_center_crop: bool | None
  do_pad: bool | None


class _Processor(TypedDict, total=False):
  image_processor: _Images | None


# Of SiglipImageProcessor in transformers.
_DEFAULTS = dict(
  do_resize=True,
  resample=3,
  do_rescale=True,
  rescale_factor=1 / 255,
  do_normalize=True,
  image_mean=0.5,
  image_std=0.5,
  do_center_crop=False,
  do_pad=False,
)


class Images(NamedTuple):
  """How images are resized (a key of METHODS) and to which range their values are mapped."""

  method: str
  low: float = -1.0
  high: float = 1.0
  origin: str = "the checkpoint"  # For messages.
  precise: bool = False  # JPEGs are decoded with the accurate DCT, as Hugging Face does.

  def pp(self, res: int) -> str:
    """The ops for images of this size."""
    return f"{_PRECISE if self.precise else 'decode'}|{self.short(res)}"

  def short(self, res: Any = "res") -> str:
    """Only those of size and values."""
    values = f"{self.low:.9g}, {self.high:.9g}"
    return f"resize({res}{METHODS[self.method]})|value_range({values})"

  def as_json(self) -> dict[str, Any]:
    """The fields of preprocessor_config.json that `read` reads as this."""
    width = self.high - self.low
    return dict(
      do_normalize=True,
      do_rescale=True,
      do_resize=True,
      image_mean=[-self.low / width] * 3,
      image_std=[1 / width] * 3,
      resample=3 if self.method == "bicubic" else 2,
      rescale_factor=1 / 255,
    )


def read(folder: pathlib.Path, res: int | None = None) -> Images | None:
  """The settings of a folder for images of `res` or any pixels; None if it has none of FILES."""
  found = {}
  for name in FILES:
    if (path := folder / name).exists():
      whole = typed_json.read(path, dict[str, Any])
      typed_json.check(whole, _Processor if name == FILES[1] else _Images, path)
      fields = whole.get("image_processor") if name == FILES[1] else whole
      if fields:
        given = {k: v for k, v in fields.items() if v is not None}
        found[path] = _images_of(_DEFAULTS | given, res, path)
  if len(different := list(dict.fromkeys(i._replace(origin="") for i in found.values()))) > 1:
    first, second = (images.short() for images in different)
    files = " and ".join(map(str, found))
    raise UserError(
      f"{files} prepare images differently: {first} and {second}. Remove one of them."
    )
  return next(iter(found.values()), None)


def _images_of(fields: Mapping[str, Any], res: int | None, path: pathlib.Path) -> Images:
  """The `Images` of one file, with defaults filled in."""

  def refuse(name: str, only: str):
    value = fields.get(name)
    raise UserError(
      f"{path}: {name} is {value!r}, and pgjax can only do {only}. --resize=METHOD of"
      f" pgjax.predict prepares images in a way that you choose ({', '.join(METHODS)})."
    )

  kind = fields.get("image_processor_type") or "SiglipImageProcessor"
  if not kind.startswith("Siglip"):
    refuse("image_processor_type", "what SiglipImageProcessor does, PaliGemma's")
  if not fields["do_resize"]:
    refuse("do_resize", "images that are resized")
  for name in ("do_center_crop", "do_pad"):
    if fields[name]:
      refuse(name, "without it")
  size = fields.get("size", res)
  sides = set(size.values()) if isinstance(size, dict) else {size}
  if (res and sides != {res}) or (
    isinstance(size, dict) and not size.keys() <= {"height", "width"}
  ):
    refuse("size", f"the {res} x {res} of config.json (vision_config.image_size)")
  if (method := _RESAMPLE.get(fields["resample"])) is None:
    named = f" ({_NAMES[fields['resample']]})" if fields["resample"] in _NAMES else ""
    refuse("resample", f"2 (bilinear) and 3 (bicubic), not{named or ' this'}")
  mean, std = 0.0, 1.0
  if fields["do_normalize"]:
    for name in ("image_mean", "image_std"):
      if len(set(_listed(fields[name]))) > 1:
        refuse(name, "one number for all channels")
    mean, std = (_listed(fields[name])[0] for name in ("image_mean", "image_std"))
    if std <= 0:
      refuse("image_std", "a positive number")
  factor = float(fields["rescale_factor"]) if fields["do_rescale"] else 1.0
  low, high = (round((value * factor - mean) / std, 9) for value in (0, 255))
  if not (low < high and max(-low, high) <= 1e6):
    refuse("image_std", "a positive number that keeps values below 1e6")
  return Images(method, low, high, str(path), precise=True)


def _listed(level: Any) -> list[float]:
  return level if isinstance(level, list) else [level]


def of_pp(pp: str, origin: str) -> Images | None:
  """What ops do with the pixels; None if they do not resize, or do more than `Images` can."""
  try:
    calls = {call.name: call for call in call_syntax.parse(pp, parse.OPS, "pp")}
  except UserError:
    return None
  if "resize" not in calls or "value_range" not in calls:
    return None
  resize, values = (dict(calls[name].bound.arguments) for name in ("resize", "value_range"))
  low, high = (float(values.get(name, default)) for name, default in (("vmin", -1), ("vmax", 1)))
  if (values.get("in_min", 0), values.get("in_max", 255)) != (0, 255) or low >= high:
    return None
  method = "antialias" if resize.get("antialias") else "bilinear"
  if resize.get("method", "bilinear") != "bilinear":
    if resize["method"] != "bicubic" or resize.get("antialias"):
      return None
    method = "bicubic"
  precise = "decode" not in calls or calls["decode"].bound.arguments.get("precise", False)
  return Images(method, low, high, origin, precise)


def differences(images: Callable[[], Images | None], pps: Iterable[str]) -> list[str]:
  """A sentence for each way of ops that is not that of a folder, or about what cannot be read."""
  try:
    theirs = images()
  except UserError as error:
    return [str(error)]
  notes = {}
  for pp in pps:
    ours = of_pp(pp, "")
    if theirs and ours and _way(theirs) != _way(ours):
      notes[ours] = (
        f"{theirs.origin} prepares images as {theirs.pp('res')}, and this config as"
        f" {ours.pp('res')}: answers are better with the way that the weights were trained with."
      )
  return list(notes.values())


def _way(images: Images) -> tuple:
  """What changes answers; a folder that pgjax wrote does not name its DCT, unless it is bicubic."""
  return (*images[:3], images.precise and images.method == "bicubic")


def of_method(method: str) -> Images:
  """The usual range of values, with a method of METHODS."""
  if method not in METHODS:
    raise UserError(f"--resize={method} must be one of {', '.join(METHODS)}.")
  return Images(method, precise=method == "bicubic")


def with_method(pp: str, method: str) -> str:
  """The ops with every `resize` by this method of METHODS, in the same size, and its `decode`."""
  precise = of_method(method).precise
  parts, resized = [], 0
  for call in call_syntax.parse(pp, parse.OPS, "pp"):
    given = dict(call.bound.arguments)
    if call.name == "decode":
      given = {n: v for n, v in given.items() if n != "precise"} | (
        {"precise": True} if precise else {}
      )
      parts.append(f"decode({_written(given)})" if given else "decode")
    elif call.name == "resize":
      kept = {n: v for n, v in given.items() if n not in ("size", "method", "antialias")}
      more = f", {_written(kept)}" if kept else ""
      parts.append(f"resize({given['size']}{METHODS[method]}{more})")
      resized += 1
    else:
      parts.append(call.written)
  if not resized:
    raise UserError(f"--resize={method}: the image ops of this checkpoint have no resize: {pp}.")
  return "|".join(parts)


def _written(arguments: Mapping[str, Any]) -> str:
  return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
