"""Which file or folder does a user's CKPT stand for?

A path; a published name such as pt_3b_224 or paligemma2-3b-pt-224, looked for in the folder that
PGJAX_WEIGHTS_DIR names and then on the hub; or a hub id such as google/paligemma2-3b-pt-224. What
is in the file says ckpt.py.
"""

import logging
import os
import pathlib
import re

from pgjax.errors import UserError

log = logging.getLogger("pgjax")

WEIGHTS_DIR = "PGJAX_WEIGHTS_DIR"
_SHORT = re.compile(r"pt_(?:(3b|10b|28b)_)?(224|448|896)(?:\.(bf16|f16))?")
_PUBLISHED = re.compile(
  r"paligemma2?-(?:3b|10b|28b)-(?:pt|mix|ft-[a-z0-9-]+)-(?:224|448|896)(?:-jax)?"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.npz"]
ALLOWED = (
  "allowed are a workdir of pgjax.train or one of its step folders, a big_vision .npz, a folder in"
  " Hugging Face format, a folder of PEFT, a name such as pt_224 (PaliGemma 1), pt_3b_448"
  " (PaliGemma 2) or paligemma2-3b-mix-448, and a hub id such as google/paligemma2-3b-pt-224"
)


def resolve(name: str, *, download: bool = True) -> pathlib.Path:
  """The file or folder; what is not on this machine is downloaded from the hub, or not there."""
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path.absolute()
  if short := _SHORT.fullmatch(name):
    files, repo = _files_of(*short.groups())
  elif _PUBLISHED.fullmatch(published := name.removeprefix("google/")):
    endings = ("", ".bf16.npz", ".b16.npz", ".npz", ".f16.npz")
    files, repo = [f"{published}{ending}" for ending in endings], f"google/{published}"
  elif _HUB_ID.fullmatch(name) and not name.endswith(".npz"):
    files, repo = [], name
  else:
    raise UserError(f"There is no checkpoint '{name}': no such file or folder; {ALLOWED}.")
  folder = os.environ.get(WEIGHTS_DIR)
  for file in files if folder else ():
    if (path := pathlib.Path(folder, file).expanduser()).exists():
      return path.absolute()
  where = (
    f"is in {folder} ({WEIGHTS_DIR})" if folder else f"was looked for: {WEIGHTS_DIR} is not set"
  )
  looked = f"none of {', '.join(files)} {where}" if files else "it is no path here"
  return _downloaded(name, repo, looked, {} if download else dict(local_files_only=True))


def hub_id(name: str) -> str:
  """The same checkpoint as Hugging Face's programs call it, if it is a published one."""
  if short := _SHORT.fullmatch(name):
    return _files_of(*short.groups())[1]
  return f"google/{name}" if _PUBLISHED.fullmatch(name) else name


def _files_of(size: str | None, res: str, precision: str | None) -> tuple[list[str], str]:
  """(file and folder names that a short name stands for, the preferred first; its hub id)."""
  if size is None:
    model, short = f"paligemma-3b-pt-{res}", f"pt_{res}"
    endings = ["", ".bf16", ".f16"]
  else:
    model, short = f"paligemma2-{size}-pt-{res}", f"pt_{size}_{res}"
    endings = [".b16", ".bf16", "", ".f16"]  # Kaggle spells PaliGemma 2's bfloat16 b16.
  if precision:
    spellings = {"bf16": (".b16", ".bf16"), "f16": (".f16",)}[precision]
    endings = [ending for ending in endings if ending in spellings]
  files = [f"{stem}{ending}.npz" for ending in endings for stem in (model, short)]
  return files + ([] if precision else [model]), f"google/{model}"


def _downloaded(name: str, repo: str, looked: str, how: dict[str, bool]) -> pathlib.Path:
  """The hub's copy, from its cache where it has been downloaded before."""
  import huggingface_hub  # Only who downloads waits for it.
  from huggingface_hub import errors

  page = f"https://huggingface.co/{repo}"
  log.info("%s: from %s, or from what was downloaded before.", name, page)
  try:
    folder = huggingface_hub.snapshot_download(repo, allow_patterns=_HUB_FILES, **how)
  except errors.GatedRepoError as error:
    raise UserError(
      f"'{name}': {repo} asks you to accept its licence: open {page} in a browser, accept it, make"
      " a token that may read it, and set HF_TOKEN to the token."
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f"There is no checkpoint '{name}': {looked}, and the hub shows no {page} to this user (is"
      f" HF_TOKEN set?); {ALLOWED}."
    ) from error
  except Exception as error:  # No network, a full disk, a broken answer: many types, one meaning.
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"'{name}' is not on this machine ({looked}), and {page} could not be downloaded ({reason})."
      f" Download it elsewhere, and set {WEIGHTS_DIR} to the folder that holds it."
    ) from error
  arrays = sorted(pathlib.Path(folder).glob("*.npz"))
  return arrays[0] if arrays else pathlib.Path(folder)
