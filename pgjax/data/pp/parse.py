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
from pgjax.data.pp import box_ops, image_ops, text_ops
from pgjax.errors import UserError

Example = dict
_FACTORIES = (*image_ops.OPS, *box_ops.OPS, *text_ops.TEXT_OPS, *text_ops.VALUE_OPS)
OPS = {factory.__name__: factory for factory in _FACTORIES}
# Skipped where only texts matter; `reshape` and `copy` also move texts.
IMAGE_OPS = {factory.__name__ for factory in image_ops.OPS} | {
  "draw_bbox", "flip_boxes_lr", "image_size"
}  # fmt: skip


class Op(NamedTuple):
  """One parsed op: its name, its text in `pp`, and its function."""

  name: str
  written: str
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
    return Pipeline(tuple(op for op in self.ops if op.name not in IMAGE_OPS))


def parse(pp: str, *, tokenizer=None) -> Pipeline:
  """Parses a `pp` string; raises UserError for a wrong op or argument."""
  calls = call_syntax.parse(pp, OPS, "pp")
  for call in calls:
    for name in ("key", "outkey"):
      target = str(call.bound.arguments.get(name))
      if target.startswith("_") and target != "_id":  # A row's number, as in sources/tfds.py.
        raise UserError(
          f"{call.where}: {name} must not begin with an underscore: such names are the pipeline's."
        )
  return Pipeline(tuple(Op(c.name, c.written, c(tokenizer=tokenizer)) for c in calls))
