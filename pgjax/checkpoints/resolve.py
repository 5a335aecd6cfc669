"""Which file or folder does a user's CKPT mean?

A path; a URL of an object store; a published name such as pt_3b_224 or paligemma2-3b-pt-224, in the
folder PGJAX_WEIGHTS_DIR or on the hub; or a hub id such as google/paligemma2-3b-pt-224, with
@REVISION if not its main. source.py opens it.
"""

import logging
import os
import pathlib
import re
from typing import NamedTuple

from etils import epy

from pgjax.errors import UserError
from pgjax.formats import buckets
from pgjax.huggingface import hub

with epy.lazy_imports():  # Not for --help.
  from pgjax.checkpoints import bucket_view

log = logging.getLogger("pgjax")

_SHORT = re.compile(r"pt_(?:(3b|10b|28b)_)?(224|448|896)(?:\.(bf16|f16))?")
_PUBLISHED = re.compile(
  r"paligemma2?-(?:3b|10b|28b)-(?:pt|mix|ft-[a-z0-9-]+)-(?:224|448|896)(?:-jax)?"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
# On the hub their main branch is float32, and bfloat16 and float16 are revisions.
_FLOAT32_MAIN = re.compile(r"google/paligemma-3b-(?:pt|mix|ft-[a-z0-9-]+)-(?:224|448|896)")
_PRECISIONS = {"bfloat16": "bf16", "float16": "f16"}  # {revision: how files are called}.
_ENDINGS = {
  None: ("", ".bf16.npz", ".b16.npz", ".npz", ".f16.npz"),
  "bf16": (".bf16.npz", ".b16.npz"),
  "f16": (".f16.npz",),
}
ALLOWED = (
  "allowed are a workdir of pgjax.train or one of its step folders, a big_vision .npz, a checkpoint"
  " folder of big_vision or openpi, a folder in Hugging Face format, a folder of PEFT, a name such"
  " as pt_224 (PaliGemma 1), pt_3b_448 (PaliGemma 2) or paligemma2-3b-mix-448, and a hub id such as"
  " google/paligemma2-3b-pt-224 or google/paligemma-3b-pt-224@bfloat16; s3:// and gs:// for any"
)


class _Named(NamedTuple):
  """What a name means: a path on this machine, or a repository of the hub."""

  path: pathlib.Path | None
  repo: str = ""
  revision: str | None = None  # None: main.
  searched: str = ""  # Where it was searched on this machine, for messages.


def resolve(
  name: str, *, tokenizer_only: bool = False, dtype: str | None = None, step: int | None = None
) -> pathlib.Path:
  """The path of a checkpoint, from the hub or an object store if it is not on this machine.

  name: may end in @REVISION of the hub. tokenizer_only: of the hub's files, only the tokenizer's
  are needed. dtype: the weights are used in it; for PaliGemma 1, whose main is float32 on the hub,
  its revision of that dtype is exact then, and half as large. step: of a run in an object store,
  of which only one is downloaded.
  """
  if buckets.is_url(name):
    return bucket_view.readable(name, step=step)
  found = _named(name)
  if found.path is not None:
    return found.path
  smaller = None
  if found.revision is None and not tokenizer_only and _FLOAT32_MAIN.fullmatch(found.repo):
    smaller = dtype if dtype in _PRECISIONS else None
    log.info("%s", _about_revisions(found.repo, smaller))
  return hub.download(
    name,
    found.repo,
    found.searched,
    ALLOWED,
    revision=found.revision or smaller,
    fallback=smaller is not None,
    tokenizer_only=tokenizer_only,
  )


def is_local(name: str) -> bool:
  """Whether a checkpoint is on this machine or in an object store: the hub is not asked for it."""
  return buckets.is_url(name) or _named(name).path is not None


def is_published(name: str) -> bool:
  """Whether a name of the hub is one of Google's checkpoints."""
  stem, _ = _split_revision(hub_id(name))
  return _PUBLISHED.fullmatch(stem.removeprefix("google/")) is not None


def _named(name: str) -> _Named:
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return _Named(path.absolute())
  stem, revision = _split_revision(name)
  if short := _SHORT.fullmatch(stem):
    size, res, precision = short.groups()
    files, repo = _files_of(size, res, precision or _PRECISIONS.get(revision))
    if _FLOAT32_MAIN.fullmatch(repo):
      revision = revision or {p: r for r, p in _PRECISIONS.items()}.get(precision)
  elif _PUBLISHED.fullmatch(published := stem.removeprefix("google/")):
    files = [f"{published}{ending}" for ending in _ENDINGS[_PRECISIONS.get(revision)]]
    repo = f"google/{published}"
  elif _HUB_ID.fullmatch(stem) and not stem.endswith(".npz"):
    files, repo = [], stem
  else:
    raise UserError(f"There is no checkpoint '{name}': no such file or folder; {ALLOWED}.")
  if revision not in (None, "main", *_PRECISIONS):
    files = []
  where = f"was searched: {hub.WEIGHTS_DIR} is not set"
  if folder := os.environ.get(hub.WEIGHTS_DIR):
    where = f"is in {folder} ({hub.WEIGHTS_DIR})"
    for file in files:
      if (path := pathlib.Path(folder, file).expanduser()).exists():
        return _Named(path.absolute())
  searched = f"none of {', '.join(files)} {where}" if files else "it is no path here"
  return _Named(None, repo, revision, searched)


def _split_revision(name: str) -> tuple[str, str | None]:
  """(name, revision) of NAME@REVISION; None if there is no revision."""
  name, at, revision = name.partition("@")
  if at and not _REVISION.fullmatch(revision):
    raise UserError(
      f"'{name}@{revision}': what follows @ is a revision of the hub, a branch, tag or commit such"
      " as google/paligemma-3b-pt-224@bfloat16."
    )
  return name, revision or None


def _about_revisions(repo: str, smaller: str | None) -> str:
  if smaller:
    return (
      f"{repo}: its revision {smaller} is taken, about 6 GB, because the weights are used in"
      f" {smaller}; {repo}@main has 12 GB of float32."
    )
  return f"{repo}: its main is float32, 12 GB; {repo}@bfloat16 has half the bytes."


def hub_id(name: str) -> str:
  """Hugging Face's name of a published checkpoint; other names do not change."""
  name, at, revision = name.partition("@")
  return _hub_id(name) + at + revision


def _hub_id(name: str) -> str:
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
