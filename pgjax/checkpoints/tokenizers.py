"""The tokenizer file of a checkpoint."""

import pathlib
from typing import Any

from pgjax.checkpoints import resolve, source as source_lib, workdir
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.huggingface import peft


def tokenizer_of(model_init: str, *, download: bool = True) -> bytes | None:
  """The tokenizer.model that comes with initial weights, if one does."""
  path = resolve.resolve(resolve.name_and_part(model_init)[0], download=download)
  if path.suffix == ".npz":
    return source_lib.tokenizer_beside(path)
  if peft.is_folder(path):
    return source_lib.open_source(model_init).tokenizer
  if any(path.glob("*.safetensors*")):
    return source_lib.bytes_of(path / "tokenizer.model")
  tokenizer = workdir.find(str(path)).tokenizer
  return pathlib.Path(tokenizer).read_bytes() if tokenizer else None


def tokenizer_of_run(config: Any, *, download: bool = True) -> tokenizer_lib.Tokenizer:
  """The config's, or that of the initial weights if the config's cannot be loaded."""
  try:
    return tokenizer_lib.load(config.tokenizer)
  except UserError:
    if not isinstance(config.model_init, str):
      raise
    source = tokenizer_of(config.model_init, download=download)
    if source is None:
      raise
    return tokenizer_lib.Tokenizer(source, config.model_init)
