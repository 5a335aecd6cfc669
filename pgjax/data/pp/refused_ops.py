"""Which ops of big_vision does pgjax refuse, and what does the same?

Their names are known, so that the error tells what to write instead.
"""

from pgjax.errors import UserError

_Any = str | float | bool | None | list[str | float]


def tokenize(*arguments: _Any, **more: _Any):
  """Refused: it uses T5's tokenizers; write tok, which uses the run's own."""
  raise UserError("tokenize uses T5's tokenizers; write tok(...), which uses config.tokenizer.")


def clip_i1k_label_names(*arguments: _Any, **more: _Any):
  """Refused: the class names of ImageNet are no part of pgjax."""
  raise UserError(_LABELS)


def i21k_label_names(*arguments: _Any, **more: _Any):
  """Refused: the class names of ImageNet are no part of pgjax."""
  raise UserError(_LABELS)


_LABELS = "it has the class names of ImageNet, which are no part of pgjax; store names in the data."
OPS = (tokenize, clip_i1k_label_names, i21k_label_names)
