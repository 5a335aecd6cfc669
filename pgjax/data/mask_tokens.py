"""Which codes does a mask have, computed in numpy?

Threads and worker processes of the input pipeline must not touch the training devices, so this
repeats the encoder of models/seg_vae.py; tests/models/test_seg_vae.py compares the two. Codes of
objects are stored (mask_cache.py), because every epoch and every evaluation needs them again.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgjax.data import locations, mask_cache, masks
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz

_DOWN, _RESIDUAL = ("0", "2", "4", "6"), ("8", "9")
_AT_ONCE = 16  # Masks; 8 MB of windows for the largest layer.
_ROWS = 16  # Of a block of a matrix product; every layer has a multiple of 16 positions.
_ONE_THREAD = 1 << 18  # Multiplications up to which OpenBLAS uses one thread.


class MaskEncoder:
  """Encodes masks that are cropped to their boxes; `params` is seg_vae_npz.load's tree."""

  def __init__(self, params):
    self._kernels, self._biases = {}, {}
    digest = hashlib.sha256()
    for name, layer in sorted(params["encoder"].items()):
      self._kernels[name] = np.ascontiguousarray(layer["kernel"], np.float32)
      self._biases[name] = np.ascontiguousarray(layer["bias"], np.float32)
      digest.update(self._kernels[name].tobytes() + self._biases[name].tobytes())
    self._codebook_KE = np.ascontiguousarray(params["codebook"], np.float32)
    digest.update(self._codebook_KE.tobytes())
    self._weights, self._caches = digest.digest(), {}
    if len(self._codebook_KE) > locations.CODEBOOK:
      size = len(self._codebook_KE)
      raise UserError(f"The codebook has {size} codes, but only {locations.CODEBOOK} <seg> exist.")

  def __getstate__(self):
    """Worker processes start with empty caches, and read the file beside the data."""
    return self.__dict__ | {"_caches": {}}

  def __call__(self, masks_BHW: np.ndarray) -> np.ndarray:
    """float32 [B, 64, 64] in [0, 1] -> int64 [B, 16]."""
    parts = [masks_BHW[i : i + _AT_ONCE] for i in range(0, len(masks_BHW), _AT_ONCE)]
    return np.concatenate([self._codes(part) for part in parts])

  def of_object(self, mask_HW: np.ndarray, box) -> tuple[int, ...]:
    """The sixteen codes of a mask of the whole image, in its box y0, x0, y1, x1."""
    return tuple(int(n) for n in self(masks.crop(mask_HW, box)[None])[0])

  def of_objects(
    self,
    outlines: Sequence[Any],
    boxes: Sequence[Sequence[float]],
    height: int,
    width: int,
    folder: str | None = None,
  ) -> list[tuple[int, ...]]:
    """The codes of all objects of an image, from COCO's segmentations; stored in `folder`.

    All are encoded together if one is not stored, so that codes do not depend on what is.
    """
    if folder not in self._caches:
      self._caches[folder] = mask_cache.MaskCache(folder, self._weights)
    cache = self._caches[folder]
    pairs = list(zip(outlines, boxes, strict=True))
    keys = [mask_cache.key(outline, box, height, width) for outline, box in pairs]
    codes = cache.get(keys)
    if codes is None:
      crops = [masks.crop(masks.from_coco(o, height, width), box) for o, box in pairs]
      codes = [tuple(row) for row in self(np.stack(crops)).tolist()]
      cache.add(dict(zip(keys, codes, strict=True)))
    return codes

  def _codes(self, masks_BHW):
    x = 2 * (np.asarray(masks_BHW, np.float32)[..., None] - np.float32(0.5))
    for name in _DOWN:
      x = np.maximum(self._conv(name, x, stride=2), 0)
    for name in _RESIDUAL:
      y = np.maximum(self._conv(f"{name}.net.0", x), 0)
      y = np.maximum(self._conv(f"{name}.net.2", y), 0)
      x = x + self._conv(f"{name}.net.4", y)
    latents_NE = self._conv("10", x).reshape(-1, self._codebook_KE.shape[1])
    squares_N1, codes_KE = np.sum(latents_NE**2, -1, keepdims=True), self._codebook_KE
    products_NK = _product(latents_NE, codes_KE.T)
    distance_NK = squares_N1 + np.sum(codes_KE**2, -1) - 2 * products_NK
    return np.argmin(distance_NK, axis=-1).reshape(len(x), -1)

  def _conv(self, name, x, stride=1):
    """A "SAME" convolution as one matrix product; windows are in the kernel's order H, W, I."""
    kernel_HWIO = self._kernels[name]
    side, channels = kernel_HWIO.shape[0], kernel_HWIO.shape[3]
    totals = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[1:3]]
    pads = [(total // 2, total - total // 2) for total in totals]  # The odd zero is last.
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    windows_BRCHWI = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    rows = windows_BRCHWI.shape[:3]
    product = _product(windows_BRCHWI.reshape(np.prod(rows), -1), kernel_HWIO.reshape(-1, channels))
    return product.reshape(*rows, channels) + self._biases[name]


def _product(left_MK: np.ndarray, right_KN: np.ndarray) -> np.ndarray:
  """left @ right in blocks that BLAS computes in the calling thread.

  Several threads encode at once, and a BLAS that also starts threads in each is ten times slower.
  """
  K, N = right_KN.shape
  k = min(K, max(1, _ONE_THREAD // (_ROWS * N)))
  pad = -K % k
  left_MK, right_KN = np.pad(left_MK, ((0, 0), (0, pad))), np.pad(right_KN, ((0, pad), (0, 0)))
  left_BPmk = left_MK.reshape(-1, _ROWS, (K + pad) // k, k).transpose(0, 2, 1, 3)
  products_BPmN = left_BPmk @ right_KN.reshape(-1, k, N)
  return products_BPmN.sum(axis=1).reshape(-1, N)


@functools.lru_cache(maxsize=2)
def load(name: str) -> MaskEncoder:
  """The encoder in an .npz file of formats/seg_vae_npz.py, or "oi"."""
  return MaskEncoder(seg_vae_npz.load(name))
