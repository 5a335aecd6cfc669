"""Downloads from and uploads to the Hugging Face hub: the only door to huggingface_hub."""

import logging
import pathlib

from pgjax.errors import UserError

log = logging.getLogger("pgjax")

WEIGHTS_DIR = "PGJAX_WEIGHTS_DIR"  # A folder with downloaded checkpoints, searched before the hub.
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.npz"]


def download(name: str, repo: str, searched: str, allowed: str, **how: bool) -> pathlib.Path:
  """The hub's copy, from its cache if it was downloaded before; `how`: see snapshot_download."""
  import huggingface_hub  # Slow; only needed here.
  from huggingface_hub import errors

  page = f"https://huggingface.co/{repo}"
  log.info("%s: from %s, or from its cache.", name, page)
  try:
    folder = huggingface_hub.snapshot_download(repo, allow_patterns=_HUB_FILES, **how)
  except errors.GatedRepoError as error:
    raise UserError(
      f"'{name}': {repo} asks you to accept its licence: open {page} in a browser, accept it, make"
      " a token that may read it, and set HF_TOKEN to the token."
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"There is no checkpoint '{name}': {searched}, and the hub shows no {page} to this user (is"
      f" HF_TOKEN set?); {allowed}."
    ) from error
  except Exception as error:  # No network, a full disk, a broken answer: many types, one meaning.
    raise UserError(
      f"'{name}' is not on this machine ({searched}), and {page} could not be downloaded"
      f" ({_reason(error)}). Download it elsewhere, and set {WEIGHTS_DIR} to the folder that holds"
      " it."
    ) from error
  arrays = sorted(pathlib.Path(folder).glob("*.npz"))
  return arrays[0] if arrays else pathlib.Path(folder)


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
