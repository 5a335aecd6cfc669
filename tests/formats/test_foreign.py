"""Weights in formats that are not read: one sentence that names the format and what to do."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from pgjax.checkpoints import source as source_lib
from pgjax.errors import UserError
from pgjax.formats import npz, safetensors

FILES = {
  "pytorch_model.bin": "a PyTorch file: a pickle",
  "model.pth": "a PyTorch file: a pickle",
  "model.pt": "a PyTorch file: a pickle",
  "last.ckpt": "perhaps a pickle",
  "model.gguf": "llama.cpp's GGUF",
  "model.weights.h5": "Keras' format",
  "flax_model.msgpack": "Flax's msgpack",
  "paligemma.nemo": "a NeMo archive",
  "model.onnx": "ONNX",
  "weights.tar.gz": "an archive",
}
POINTER = (
  "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 5850000000\n"
).encode()


@pytest.mark.parametrize("name", FILES)
def test_a_file_or_a_folder_of_another_format_is_named(name, tmp_path):
  (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")  # A pickle that would run a program.
  (tmp_path / "config.json").write_text("{}")
  for ckpt in (tmp_path / name, tmp_path):
    with pytest.raises(UserError) as error:
      source_lib.open_source(str(ckpt))
    assert FILES[name] in str(error.value)
    assert "save_pretrained(FOLDER" in str(error.value)
  assert name in str(error.value)


STARTS = {
  b"GGUF\x03\x00\x00\x00": "llama.cpp's GGUF",
  b"\x89HDF\r\n\x1a\n": "Keras' format",
  b"\x80\x02}q\x00": "a pickle",
  b"<!DOCTYPE html>": "a page of HTML",
  b"hello": "a file of no format that is known here",
}


@pytest.mark.parametrize("start", STARTS)
def test_a_file_without_an_ending_is_named_by_its_first_bytes(start, tmp_path):
  (tmp_path / "weights").write_bytes(start + bytes(100))
  with pytest.raises(UserError, match=STARTS[start]):
    source_lib.open_source(str(tmp_path / "weights"))


@pytest.mark.parametrize("name", ["model.safetensors", "w.npz", "weights"])
def test_a_pointer_of_git_lfs_is_named(name, tmp_path):
  (tmp_path / name).write_bytes(POINTER)
  (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
  with pytest.raises(UserError, match=r"is a pointer of Git LFS \(1\d\d bytes\).*git lfs pull"):
    source_lib.open_source(str(tmp_path if name == "model.safetensors" else tmp_path / name))


def test_a_single_safetensors_file_asks_for_its_folder(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"x")
  with pytest.raises(UserError, match=f"give the folder, {tmp_path}"):
    source_lib.open_source(str(tmp_path / "model.safetensors"))


def test_a_page_under_the_name_of_weights_is_named(tmp_path):
  (tmp_path / "w.npz").write_bytes(b"\n<html><body>Sign in</body></html>")
  with pytest.raises(UserError, match="is a page of HTML or XML, as a website answers"):
    npz.read_npz(tmp_path / "w.npz")


def header(text, size=64):
  return struct.pack("<Q", len(text)) + text + bytes(size)


def test_a_header_with_a_tensor_twice_raises(tmp_path):
  entry = json.dumps(dict(dtype="F32", shape=[2], data_offsets=[0, 8]))
  other = json.dumps(dict(dtype="F32", shape=[2], data_offsets=[8, 16]))
  path = tmp_path / "m.safetensors"
  path.write_bytes(header(f'{{"a": {entry}, "a": {other}}}'.encode()))
  with pytest.raises(UserError, match="its header has 'a' twice"):
    safetensors.read_safetensors_file(path)
  path.write_bytes(header(f'{{"a": {entry}, "b": {other}}}'.encode()))
  assert sorted(safetensors.read_safetensors_file(path)) == ["a", "b"]
  path.write_bytes(header(f'{{"a": {entry}, "b": {entry}}}'.encode()))
  with pytest.raises(UserError, match="'a' and 'b' overlap"):
    safetensors.read_safetensors_file(path)
  path.write_bytes(header(f'{{"a": {entry}, "b": {other}}}'.encode(), size=15))
  with pytest.raises(UserError, match="'b' ends beyond the end of the file"):
    safetensors.read_safetensors_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_an_array_twice_raises(tmp_path):
  array = io.BytesIO()
  np.lib.format.write_array(array, np.zeros(3, np.float32))
  with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
    file.writestr("a.npy", array.getvalue())
    file.writestr("a.npy", array.getvalue())
  with pytest.raises(UserError, match="two of its arrays have the same name"):
    npz.read_npz(tmp_path / "w.npz")
