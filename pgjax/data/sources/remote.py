"""Where is a data set whose config names an object store? It is downloaded before it is opened.

Only `fname`, `root` and `images` of a config may be such URLs, and never a row of a file: see
image_values.py. With fname="s3://bucket/set/train.jsonl" and no root, the folder of the file is
downloaded, as its images are there. What has not changed is not downloaded again.
"""

import logging
import os
import pathlib
import re
import secrets
from collections.abc import Mapping
from typing import Any

from pgjax import cache_dir, disk
from pgjax.errors import UserError
from pgjax.formats import buckets, typed_json

log = logging.getLogger("pgjax")

_FIELDS = ("fname", "root", "images")
_URL = re.compile("(s3|gs)://", re.IGNORECASE)
_PATTERN = re.compile(r"[*?{\[]")
_TAGS = ".downloaded.json"  # {name: [size, tag]} of what is here.


def downloaded(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a source, with paths of this machine for URLs of an object store."""
  fields = dict(fields)
  images = fields.get("root") or fields.get("images")
  for field in _FIELDS:
    value = fields.get(field)
    if isinstance(value, str) and _URL.match(value):
      fields[field] = _path(value, field, with_images=field == "fname" and not images)
  return fields


def local_file(name: str, flag: str) -> str:
  """The path of a file; one in an object store is downloaded."""
  return _path(name, flag, with_images=False) if _URL.match(name) else name


def _path(url: str, field: str, *, with_images: bool) -> str:
  try:
    return _local(url, field, with_images=with_images)
  except OSError as error:
    raise UserError(f"{field}={url} cannot be read ({disk.reason(error)}).") from None


def _local(url: str, field: str, *, with_images: bool) -> str:
  if match := _PATTERN.search(url):
    folder = url[: url.rindex("/", 0, match.start())]
    return os.path.join(_folder(buckets.Bucket(folder, field)), url[len(folder) + 1 :])
  bucket = buckets.Bucket(url, field)
  if not bucket.is_object():
    return _folder(bucket)
  parent, _, base = bucket.url.rpartition("/")
  if with_images and parent.count("/") >= 3:
    return os.path.join(_folder(buckets.Bucket(parent, field)), base)
  place = _place(bucket)
  bucket.get("", place)
  return str(place)


def _folder(bucket: buckets.Bucket) -> str:
  """The local folder, with exactly the files of the bucket's."""
  place, remote = _place(bucket), bucket.listing()
  if not remote:
    raise UserError(f"There is nothing at {bucket.url}: no object has such a name.")
  place.mkdir(parents=True, exist_ok=True)
  have = _have(place)
  here = {p.relative_to(place).as_posix(): p for p in place.rglob("*") if p.is_file()}
  for name, path in here.items():
    if name not in remote and not path.name.startswith("."):
      path.unlink()
  wanted = {
    name: disk.inside(place, name, "The object")
    for name, stamp in remote.items()
    if name not in here or not stamp.tag or have.get(name) != (stamp.size, stamp.tag)
  }
  if wanted:
    size = sum(remote[name].size for name in wanted)
    log.info("Downloading %s: %d files, %.1f MB, to %s", bucket.url, len(wanted), size / 1e6, place)
  buckets.together(lambda name: bucket.get(name, wanted[name]), wanted)
  tags = disk.dumps({name: list(stamp) for name, stamp in remote.items()})
  with disk.disk_errors(place):
    partial = place / f".{secrets.token_hex(4)}"  # Other processes do the same.
    partial.write_text(tags)
    partial.replace(place / _TAGS)
  return str(place)


def _have(place: pathlib.Path) -> dict[str, tuple[int, str]]:
  try:
    return typed_json.read(place / _TAGS, dict[str, tuple[int, str]])
  except UserError:
    return {}


def _place(bucket: buckets.Bucket) -> pathlib.Path:
  """Its folder names are those of the URL, so that messages show it."""
  base = cache_dir.folder("buckets/data")
  if base is None:
    raise UserError(
      f"{bucket.url} needs a folder to download to, and PGJAX_CACHE_DIR (or ~/.cache/pgjax) cannot"
      " be written."
    )
  return base / bucket.url.replace("://", "/")
