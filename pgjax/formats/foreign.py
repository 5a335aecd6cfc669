"""Names the formats of weights that pgjax does not read, and files that only stand for weights.

By the file's ending and its first bytes; nothing is unpacked, and no pickle is opened.
"""

import pathlib
from collections.abc import Iterable

from pgjax.errors import UserError
from pgjax.formats import input_files

_PICKLE = "a PyTorch file: a pickle, which can run code when it is read"
_ENDINGS = {
  **dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".pickle"), _PICKLE),
  ".ckpt": "a checkpoint of PyTorch or TensorFlow, perhaps a pickle, which can run code",
  ".gguf": "llama.cpp's GGUF, whose weights are mostly quantized",
  ".ggml": "llama.cpp's GGML, whose weights are mostly quantized",
  **dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras' format"),
  ".msgpack": "Flax's msgpack",
  ".nemo": "a NeMo archive",
  ".onnx": "ONNX",
  **dict.fromkeys((".tflite", ".task"), "LiteRT's format"),
  **dict.fromkeys(
    (".tar", ".gz", ".tgz", ".zip", ".7z"), "an archive: unpack it and give the folder"
  ),
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_STARTS = (
  (b"GGUF", _ENDINGS[".gguf"]),
  (b"\x89HDF", _ENDINGS[".h5"]),
  (b"PK\x03\x04", "a zip file"),
  (b"\x1f\x8b", "a gzip file"),
  (b"\x80", _PICKLE),
  (b"<", "a page of HTML or XML, as a website answers instead of a file: download it again"),
)
_WHAT_TO_DO = (
  "pgjax reads .safetensors and big_vision's .npz: load it with the library that wrote it, and save"
  " it as a Hugging Face folder, such as with model.save_pretrained(FOLDER,"
  " safe_serialization=True)."
)


def check_file(path: pathlib.Path, name: str) -> None:
  """Raises for a file that is no .npz; `name` is the user's name of it."""
  if not path.is_file():
    raise UserError(f"'{name}' is neither a file nor a folder, so no weights are read from it.")
  check_pointer(path)
  if path.suffix == ".safetensors":
    raise UserError(
      f"'{name}' is one file of a Hugging Face folder, which also describes the model: give the"
      f" folder, {path.parent}, and --weights={path.name} if it has several."
    )
  what = _ENDINGS.get(path.suffix.lower()) or _by_start(_head(path))
  if what is None:
    raise UserError(f"'{name}' is a file of no format that is known here. {_WHAT_TO_DO}")
  raise UserError(f"'{name}' is {what}. {_WHAT_TO_DO}")


def check_folder(path: pathlib.Path, name: str) -> None:
  """Raises for a folder whose only weights are in formats that are not read."""
  weights = {p.name: p.suffix.lower() for p in _files(path) if p.suffix.lower() in _ENDINGS}
  for ending in _ENDINGS:  # In this order: pickles first.
    if of_ending := sorted(n for n, suffix in weights.items() if suffix == ending):
      more = f" and {len(of_ending) - 1} more" * (len(of_ending) > 1)
      raise UserError(
        f"'{name}' has no .safetensors, and {of_ending[0]}{more} is {_ENDINGS[ending]}."
        f" {_WHAT_TO_DO}"
      )


def _files(path: pathlib.Path) -> Iterable[pathlib.Path]:
  return [p for p in path.iterdir() if p.is_file()]


def check_pointer(path: pathlib.Path) -> None:
  """Raises for a pointer of Git LFS, which is what a clone without LFS has instead of weights."""
  if _head(path).startswith(_POINTER):
    raise UserError(
      f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the file it stands for:"
      " run `git lfs pull` in its folder, or download the file itself."
    )


def _head(path: pathlib.Path) -> bytes:
  try:
    return input_files.head(path, 64)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None


def _by_start(head: bytes) -> str | None:
  return next((what for start, what in _STARTS if head.startswith(start)), None)


def check_start(path: pathlib.Path) -> None:
  """Raises for a pointer of Git LFS, or a page of HTML, under the name of a file of weights."""
  check_pointer(path)
  if (head := _head(path).lstrip()).startswith((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml")):
    raise UserError(f"{path} is {_by_start(head)}.")
