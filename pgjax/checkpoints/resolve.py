"""Which file or folder does a user's CKPT mean?

A path; a published name such as pt_3b_224 or paligemma2-3b-pt-224, in the folder PGJAX_WEIGHTS_DIR
or on the hub; or a hub id such as google/paligemma2-3b-pt-224. source.py opens it.
"""

import os
import pathlib
import re

from pgjax.errors import UserError
from pgjax.huggingface import hub

_SHORT = re.compile(r"pt_(?:(3b|10b|28b)_)?(224|448|896)(?:\.(bf16|f16))?")
_PUBLISHED = re.compile(
  r"paligemma2?-(?:3b|10b|28b)-(?:pt|mix|ft-[a-z0-9-]+)-(?:224|448|896)(?:-jax)?"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ALLOWED = (
  "allowed are a workdir of pgjax.train or one of its step folders, a big_vision .npz, a folder in"
  " Hugging Face format, a folder of PEFT, a name such as pt_224 (PaliGemma 1), pt_3b_448"
  " (PaliGemma 2) or paligemma2-3b-mix-448, and a hub id such as google/paligemma2-3b-pt-224"
)


def resolve(name: str, *, download: bool = True) -> pathlib.Path:
  """The path of a checkpoint; with `download`, from the hub if it is not on this machine."""
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
  where = f"was searched: {hub.WEIGHTS_DIR} is not set"
  if folder := os.environ.get(hub.WEIGHTS_DIR):
    where = f"is in {folder} ({hub.WEIGHTS_DIR})"
    for file in files:
      if (path := pathlib.Path(folder, file).expanduser()).exists():
        return path.absolute()
  searched = f"none of {', '.join(files)} {where}" if files else "it is no path here"
  how = {} if download else dict(local_files_only=True)
  return hub.download(name, repo, searched, ALLOWED, **how)


def hub_id(name: str) -> str:
  """Hugging Face's name of a published checkpoint; other names do not change."""
  if short := _SHORT.fullmatch(name):
    return _files_of(*short.groups())[1]
  return f"google/{name}" if _PUBLISHED.fullmatch(name) else name


def _files_of(size: str | None, res: str, precision: str | None) -> tuple[list[str], str]:
  """(files and folders of a short name, the preferred first; its hub id)."""
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


def name_and_part(spec: str) -> tuple[str, str]:
  """Splits "x.npz:img" into a checkpoint and a part of it; a path may contain colons."""
  name, _, part = spec.rpartition(":")
  return (spec, "") if not name or "/" in part or part.endswith(".npz") else (name, part)
