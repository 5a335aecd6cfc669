"""The tokenizer of a checkpoint, and of a run that starts from one."""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from pgjax.checkpoints import resolve, source as source_lib, trainer_folder, workdir
from pgjax.config import contents, model_init as model_init_lib
from pgjax.data import tokenizer as tokenizer_lib, tokenizer_folder
from pgjax.errors import UserError
from pgjax.huggingface import image_config, peft
from pgjax.models import gemma

log = logging.getLogger("pgjax")


class UnavailableError(UserError):
  """Neither the config's tokenizer nor that of the initial weights can be read."""


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
    return tokenizer_folder.source_of(path) or tokenizer_of(base)
  if not local or any(path.glob("*.safetensors*")):
    return tokenizer_folder.source_of(path)
  if arrays := trainer_folder.find(path):
    return source_lib.tokenizer_beside(arrays)
  tokenizer = workdir.find(str(path), spec.step).tokenizer
  return pathlib.Path(tokenizer).read_bytes() if tokenizer else None


def tokenizer_of_run(config: Any) -> tokenizer_lib.Tokenizer:
  """The config's, or that of the initial weights if it has more words or the config's is missing.

  Of weights on the hub, the tokenizer's files are downloaded before anything else. Raises if the
  two give one id to different words, or if the model has too few rows for it.
  """
  try:
    tokenizer = tokenizer_lib.load(config.tokenizer)
  except UserError as error:
    tokenizer = _only_of_initial(config.model_init, error)
  else:
    if theirs := _of_initial(config.model_init):
      tokenizer = _with_more_words(tokenizer, theirs, config)
  check_size(tokenizer, gemma.get(**config.model.llm).vocab_size, "config.model.llm.vocab_size")
  return tokenizer


def notes_on_start(config: Any, tokenizer: tokenizer_lib.Tokenizer) -> Iterator[str]:
  """How a run differs from the loaded weights it starts from; raises if they know more words."""
  if not isinstance(config.model_init, str):
    return
  spec = model_init_lib.parse(config.model_init)
  path = resolve.resolve(spec.name)
  known = spec.part or tokenizer.path == config.model_init
  theirs = None if known else _of_initial(config.model_init)
  if theirs and _with_more_words(tokenizer, theirs, config) is not tokenizer:
    raise UserError(
      f"The tokenizer of model_init='{spec.name}' has words that config.tokenizer="
      f"'{tokenizer.path}' lacks: set config.tokenizer='{path}'."
    )
  if (path / "config.json").is_file():
    yield from image_config.differences(
      lambda: image_config.read(path), contents.ops_of(config.input)
    )


def check_size(tokenizer: tokenizer_lib.Tokenizer, rows: int, where: str) -> None:
  """Raises if the token table, which `where` describes, has fewer rows than the tokenizer ids."""
  if rows < tokenizer.vocab_size:
    raise UserError(
      f"{where} is {rows:,}, and the tokenizer '{tokenizer.path}' has {tokenizer.vocab_size:,} ids:"
      f" the token table needs a row for each. Set model.llm.vocab_size={tokenizer.vocab_size}, or"
      " name the tokenizer that the weights were trained with."
    )


def _only_of_initial(model_init: Any, missing: UserError) -> tokenizer_lib.Tokenizer:
  """That of the initial weights, because the config's is missing."""
  try:
    source = tokenizer_of(model_init) if isinstance(model_init, str) else None
  except UserError as error:
    raise UnavailableError(str(error)) from error
  if source is None:
    raise UnavailableError(str(missing)) from missing
  return tokenizer_lib.Tokenizer(source, model_init)


def _of_initial(model_init: Any) -> tokenizer_lib.Tokenizer | None:
  """The tokenizer beside whole initial weights; of those on the hub, only its files are downloaded.

  None for published weights on the hub, which add no words, and where there is none.
  """
  if not isinstance(model_init, str):
    return None
  spec = model_init_lib.parse(model_init)
  if spec.part:
    return None
  try:
    if not resolve.is_local(spec.name) and resolve.is_published(spec.name):
      return None
    if peft.is_folder(resolve.resolve(spec.name, tokenizer_only=True)):
      return None
    source = tokenizer_of(model_init)
  except UserError:  # Reported when the weights are loaded.
    return None
  return source and tokenizer_lib.Tokenizer(source, model_init)


def _with_more_words(
  ours: tokenizer_lib.Tokenizer, theirs: tokenizer_lib.Tokenizer, config: Any
) -> tokenizer_lib.Tokenizer:
  """`theirs`, the weights', if it has words that the config's lacks."""
  if ours.sha256 == theirs.sha256:
    return ours
  have, want = ours.words(), theirs.words()
  for i, (a, b) in enumerate(zip(have, want, strict=False)):
    if a.text != b.text:
      raise UserError(
        f"config.tokenizer='{ours.path}' has {a.text!r} at id {i}, and the tokenizer of model_init="
        f"'{theirs.path}' has {b.text!r}: the weights would be used for other words. Set"
        f" config.tokenizer='{theirs.path}'."
      )
  added = [b.text for a, b in zip(have, want, strict=False) if a.kind != b.kind == "user_defined"]
  added += [piece.text for piece in want[len(have) :] if piece.kind != "control"]
  if len(have) > len(want) or not (added or theirs.added != ours.added):
    return ours
  log.info(
    "The tokenizer of %s is used, which adds to config.tokenizer='%s': %s%s.",
    theirs.path,
    ours.path,
    ", ".join(added[:5]) or "rules for words",
    f" and {len(added) - 5} more" * (len(added) > 5),
  )
  return theirs
