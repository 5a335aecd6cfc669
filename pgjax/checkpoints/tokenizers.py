"""The tokenizer file of a checkpoint."""

import pathlib
from typing import Any

from pgjax.checkpoints import resolve, source as source_lib, workdir
from pgjax.config import model_init as model_init_lib
from pgjax.data import tokenizer as tokenizer_lib
from pgjax.errors import UserError
from pgjax.huggingface import peft


def tokenizer_of(model_init: str) -> bytes | None:
  """The tokenizer.model that comes with initial weights, if one does; weights stay on the hub."""
  spec = model_init_lib.parse(model_init)
  local = resolve.is_local(spec.name)
  path = resolve.resolve(spec.name, tokenizer_only=True)
  if path.suffix == ".npz":
    return source_lib.tokenizer_beside(path)
  if peft.is_folder(path):
    base = spec.base or peft.base_of(path)
    if base is None or resolve.is_local(base):
      return source_lib.open_source(spec.name, base=spec.base, weights=spec.weights).tokenizer
    return tokenizer_of(base)
  if not local or any(path.glob("*.safetensors*")):
    return source_lib.bytes_of(path / "tokenizer.model")
  tokenizer = workdir.find(str(path), spec.step).tokenizer
  return pathlib.Path(tokenizer).read_bytes() if tokenizer else None


def tokenizer_of_run(config: Any) -> tokenizer_lib.Tokenizer:
  """The config's, or that of the initial weights if the config's cannot be loaded."""
  try:
    return tokenizer_lib.load(config.tokenizer)
  except UserError:
    if not isinstance(config.model_init, str):
      raise
    source = tokenizer_of(config.model_init)
    if source is None:
      raise
    return tokenizer_lib.Tokenizer(source, config.model_init)
