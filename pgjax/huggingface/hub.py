"""Downloads from and uploads to the Hugging Face hub: the only door to huggingface_hub."""

import logging
import pathlib
from typing import Any

from pgjax.errors import UserError

log = logging.getLogger("pgjax")

WEIGHTS_DIR = "PGJAX_WEIGHTS_DIR"  # A folder with downloaded checkpoints, searched before the hub.
TOKENIZER_FILES = (
  "tokenizer.model", "tokenizer.json", "*tokenizer*.json", "added_tokens.json",
  "adapter_config.json",
)  # fmt: skip
_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.npz")


def download(
  name: str,
  repo: str,
  searched: str,
  allowed: str,
  *,
  revision: str | None = None,
  fallback: bool = False,
  tokenizer_only: bool = False,
) -> pathlib.Path:
  """The hub's copy, from its cache if it was downloaded before.

  Args:
    name: as the user wrote it.
    repo: the hub id.
    searched: where it was searched on this machine, for messages.
    allowed: the names that are allowed, for messages.
    revision: a branch, tag or commit; None: main.
    fallback: main will do if there is no such revision.
    tokenizer_only: only small files: the tokenizer's, and adapter_config.json.
  """
  import huggingface_hub  # Slow; only needed here.
  from huggingface_hub import errors

  page = f"https://huggingface.co/{repo}" + (f"/tree/{revision}" if revision else "")
  log.info("%s: from %s, or from its cache.", name, page)
  how: dict[str, Any] = dict(revision=revision) if revision else {}
  patterns = [*(TOKENIZER_FILES if tokenizer_only else _FILES)]
  try:
    folder = huggingface_hub.snapshot_download(repo, allow_patterns=patterns, **how)
  except errors.GatedRepoError as error:
    raise UserError(
      f"'{name}': {repo} asks you to accept its licence: open https://huggingface.co/{repo} in a"
      " browser, accept it, make a token that may read it, and set HF_TOKEN to the token."
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"There is no checkpoint '{name}': {searched}, and the hub shows no {page} to this user (is"
      f" HF_TOKEN set?); {allowed}."
    ) from error
  except Exception as error:  # No network, a full disk, a broken answer: many types, one meaning.
    if fallback:
      log.info("%s has no revision %s (%s): main is taken.", repo, revision, _reason(error))
      return download(name, repo, searched, allowed, tokenizer_only=tokenizer_only)
    if isinstance(error, errors.RevisionNotFoundError):
      raise UserError(
        f"'{name}': {repo} has no revision '{revision}'; its revisions are listed at"
        f" https://huggingface.co/{repo}/tree/main. Without @{revision} its main is taken."
      ) from error
    raise UserError(
      f"{page} could not be downloaded ({_reason(error)}), and '{name}' is not on this machine"
      f" ({searched}). Download it elsewhere, and set {WEIGHTS_DIR} to the folder that holds it."
    ) from error
  return _weights_in(pathlib.Path(folder), name)


def _weights_in(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The folder, or the .npz in it."""
  arrays = sorted(folder.glob("*.npz"))
  if len(arrays) > 1:
    raise UserError(
      f"'{name}' has {len(arrays)} files of weights: {', '.join(a.name for a in arrays[:6])}. Give"
      f" the path of one of them in {folder}."
    )
  return arrays[0] if arrays else folder


def push(folder: pathlib.Path, repo: str) -> None:
  """Uploads a complete folder; the token is huggingface_hub's, from HF_TOKEN or its login."""
  import huggingface_hub

  try:
    huggingface_hub.create_repo(repo, private=True, exist_ok=True)
    huggingface_hub.upload_folder(repo_id=repo, folder_path=folder)
  except Exception as error:  # Many types: no network, no token, no right to write.
    raise UserError(
      f"--push={repo} failed ({_reason(error)}); {folder} is complete: set HF_TOKEN to a token that"
      f" may write, and upload it with `hf upload {repo} {folder}`."
    ) from error


def _reason(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
