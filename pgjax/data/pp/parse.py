"""Which ops turn a raw example into a row of the batch, and how is the `pp` string parsed?

`pp` is big_vision's mini-language: ops joined by "|", each a bare name or a call with Python
literals, such as 'decode|resize(224, antialias=True)|value_range(-1, 1)|copy("answer", "suffix")'.
OPS maps each name to a factory: arguments in, a function from example dict to example dict out; its
signature declares the arguments (call_syntax.py).

Names that start with an underscore belong to the pipeline, and `keep` preserves them. Random ops
draw from the example's own generator, seeded by `_seed` (a tuple of ints), so that an example
depends only on the seed and its position.
"""

from collections.abc import Callable
from typing import NamedTuple

from pgjax import call_syntax
from pgjax.data.pp import box_ops, crop_ops, image_ops, refused_ops, text_ops, value_ops, video_ops
from pgjax.errors import UserError

Example = dict
_PIXELS = (*image_ops.OPS, *crop_ops.OPS, *video_ops.IMAGE_OPS)
_OTHERS = (box_ops, text_ops, value_ops, video_ops, refused_ops)
_FACTORIES = dict.fromkeys((*_PIXELS, *(factory for module in _OTHERS for factory in module.OPS)))
OPS = {factory.__name__: factory for factory in _FACTORIES}
# These read `image` unless a key is given.
_OF_IMAGES = {"reshape", "squeeze_last_dim", "pad_to_shape", "rag_tensor", "lookup", "majority"}
# Skipped where only texts matter, as every op is that reads `image`.
IMAGE_OPS = {factory.__name__ for factory in _PIXELS} | {
  "draw_bbox", "flip_boxes_lr", "image_size"
}  # fmt: skip


class Op(NamedTuple):
  """One parsed op: its name, its text in `pp`, and its function."""

  name: str
  written: str
  needs_image: bool  # It works on pixels, or reads `image`.
  apply: Callable[[Example], Example]


class Pipeline(NamedTuple):
  """A parsed `pp` string: a function from example to example."""

  ops: tuple[Op, ...]

  def __call__(self, example: Example) -> Example:
    """Runs all ops in order."""
    for op in self.ops:
      try:
        example = op.apply(example)
      except KeyError as error:
        if error.args[0] in example:
          raise
        names = ", ".join(sorted(name for name in example if not name.startswith("_")))
        raise UserError(
          f"op {op.written} needs '{error.args[0]}', and the example has only: {names}"
        ) from None
    return example

  def text_only(self) -> "Pipeline":
    """The pipeline without the ops on pixels, to process only texts."""
    return Pipeline(tuple(op for op in self.ops if not op.needs_image))


def parse(pp: str, *, tokenizer=None) -> Pipeline:
  """Parses a `pp` string; raises UserError for a wrong op or argument."""
  calls = call_syntax.parse(pp, OPS, "pp")
  for call in calls:
    for name in ("key", "outkey"):
      if (
        str(call.bound.arguments.get(name)).startswith("_") and call.bound.arguments[name] != "_id"
      ):
        raise UserError(
          f"{call.where}: {name} must not begin with an underscore: such names are the pipeline's."
        )
  return Pipeline(
    tuple(Op(c.name, c.written, _needs_image(c), c(tokenizer=tokenizer)) for c in calls)
  )


def _needs_image(call: call_syntax.Call) -> bool:
  given = call.bound.arguments
  keys = [given[name] for name in ("key", "inkey", "inkeys") if given.get(name)]
  names = [name for key in keys for name in ([key] if isinstance(key, str) else key)]
  if not names and call.name in _OF_IMAGES:
    names = ["image"]
  return call.name in IMAGE_OPS or "image" in names
