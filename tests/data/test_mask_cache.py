import os
import pickle
import threading

import jax
import numpy as np
import pytest

from pgjax.data import mask_cache, mask_tokens, masks
from pgjax.models import seg_vae

WEIGHTS = bytes(range(32))
CODES = tuple(range(16))
OUTLINES = [[[4, 4, 60, 4, 60, 40]], [[0, 0, 30, 0, 30, 30, 0, 30]], [[9, 9, 90, 20, 40, 70]]]
BOXES = [[0.05, 0.05, 0.5, 0.7], [0, 0, 0.4, 0.4], [0.1, 0.1, 0.9, 0.9]]


def key(i=0):
  return mask_cache.key([[i, 2.5]], [0, 0, 1, 1], 3, 4)


def stored(folder):
  return [name for name in os.listdir(folder) if name.startswith(".pgjax-masks-")]


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(np.asarray, seg_vae.init(jax.random.key(1), width=8, embed_dim=8))


def test_codes_are_read_back_from_the_file(tmp_path):
  cache = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  assert cache.get([key()]) is None
  cache.add({key(): CODES, key(1): CODES[::-1]})
  cache.save()
  again = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  assert again.get([key(1), key()]) == [CODES[::-1], CODES]
  assert again.get([key(), key(2)]) is None
  assert len(stored(tmp_path)) == len(os.listdir(tmp_path)) == 1
  assert len(mask_cache.MaskCache(str(tmp_path), bytes(32))) == 0  # Other weights.


def test_the_key_depends_on_outline_box_and_size():
  keys = {
    key(), key(1), mask_cache.key([[0, 2.5]], [0, 0, 1, 0.5], 3, 4),
    mask_cache.key([[0, 2.5]], [0, 0, 1, 1], 4, 3),
    mask_cache.key({"size": [3, 4], "counts": "abc"}, [0, 0, 1, 1], 3, 4),
  }  # fmt: skip
  assert len(keys) == 5
  assert key() == mask_cache.key([[0, 2.5]], np.array([0, 0, 1, 1]), 3, np.int64(4))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder", "pipe", "large"])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path, damage):
  cache = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  cache.add({key(): CODES})
  cache.save()
  [name] = stored(tmp_path)
  path = tmp_path / name
  content = bytearray(path.read_bytes())
  path.unlink()
  if damage == "flip":
    content[-1] ^= 1
    path.write_bytes(content)
  elif damage == "cut":
    path.write_bytes(content[:-3])
  elif damage == "empty":
    path.write_bytes(b"")
  elif damage == "folder":
    path.mkdir()
  elif damage == "pipe":
    os.mkfifo(path)
  else:
    with path.open("wb") as file:
      file.truncate(1 << 40)
  again = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  assert len(again) == 0
  again.add({key(): CODES})
  again.save()
  assert again.get([key()]) == [CODES]
  assert len(mask_cache.MaskCache(str(tmp_path), WEIGHTS)) == (damage != "folder")
  assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
  for folder in (str(tmp_path / "none"), "/proc", None):
    cache = mask_cache.MaskCache(folder, WEIGHTS)
    cache.add({key(): CODES})
    cache.save()
    assert cache.get([key()]) == [CODES]


def test_the_number_of_records_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(mask_cache, "MAX_RECORDS", 10)
  cache = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  for i in range(25):
    cache.add({key(i): CODES})
  cache.save()
  again = mask_cache.MaskCache(str(tmp_path), WEIGHTS)
  assert len(cache) == len(again) == 10
  assert again.get([key(24)]) == [CODES]
  assert again.get([key(3)]) is None


def test_several_processes_and_threads_add_to_one_file(tmp_path):
  caches = [mask_cache.MaskCache(str(tmp_path), WEIGHTS) for _ in range(2)]
  threads = [
    threading.Thread(
      target=lambda n=n: [caches[n % 2].add({key(i): CODES}) for i in range(n, 80, 4)]
    )
    for n in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for cache in caches:
    cache.save()
  assert len(mask_cache.MaskCache(str(tmp_path), WEIGHTS)) == 80


def test_stored_codes_are_those_of_the_model(params, tmp_path, monkeypatch):
  encoder = mask_tokens.MaskEncoder(params)
  crops = [masks.crop(masks.from_coco(o, 80, 100), b) for o, b in zip(OUTLINES, BOXES, strict=True)]
  wanted = [
    tuple(row) for row in np.asarray(seg_vae.encode(params, np.stack(crops)[..., None])).tolist()
  ]
  assert encoder.of_objects(OUTLINES, BOXES, 80, 100, str(tmp_path)) == wanted
  assert encoder.of_objects([], [], 80, 100) == []
  single = encoder.of_object(masks.from_coco(OUTLINES[0], 80, 100), BOXES[0])
  assert single == wanted[0]
  for cache in encoder._caches.values():  # noqa: SLF001
    cache.save()
  again = mask_tokens.MaskEncoder(params)
  monkeypatch.setattr(again, "_codes", None)  # Nothing is computed.
  assert again.of_objects(OUTLINES, BOXES, 80, 100, str(tmp_path)) == wanted


def test_an_encoder_goes_to_worker_processes_without_its_cache(params, tmp_path):
  encoder = mask_tokens.MaskEncoder(params)
  codes = encoder.of_objects(OUTLINES, BOXES, 80, 100, str(tmp_path))
  again = pickle.loads(pickle.dumps(encoder))
  assert again.of_objects(OUTLINES, BOXES, 80, 100) == codes
