"""Which codes does a mask have, computed in numpy?

Threads and worker processes of the input pipeline must not touch the training devices, so this
repeats the encoder of models/seg_vae.py; tests/models/test_seg_vae.py compares the two.
"""

import functools

import numpy as np

from pgjax.data import locations, masks
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz

_DOWN, _RESIDUAL = ("0", "2", "4", "6"), ("8", "9")


class MaskEncoder:
  """Encodes masks that are cropped to their boxes; `params` is seg_vae_npz.load's tree."""

  def __init__(self, params):
    self._layers = {
      name: tuple(np.asarray(layer[part], np.float32) for part in ("kernel", "bias"))
      for name, layer in params["encoder"].items()
    }
    self._codebook_KE = np.asarray(params["codebook"], np.float32)
    if len(self._codebook_KE) > locations.CODEBOOK:
      size = len(self._codebook_KE)
      raise UserError(f"The codebook has {size} codes, but only {locations.CODEBOOK} <seg> exist.")

  def __call__(self, masks_BHW: np.ndarray) -> np.ndarray:
    """float32 [B, 64, 64] in [0, 1] -> int64 [B, 16]."""
    x = 2 * (np.asarray(masks_BHW, np.float32)[..., None] - np.float32(0.5))
    for name in _DOWN:
      x = np.maximum(self._conv(name, x, stride=2), 0)
    for name in _RESIDUAL:
      y = np.maximum(self._conv(f"{name}.net.0", x), 0)
      y = np.maximum(self._conv(f"{name}.net.2", y), 0)
      x = x + self._conv(f"{name}.net.4", y)
    latents_NE = self._conv("10", x).reshape(-1, self._codebook_KE.shape[1])
    squares_N1, codes_KE = np.sum(latents_NE**2, -1, keepdims=True), self._codebook_KE
    distance_NK = squares_N1 + np.sum(codes_KE**2, -1) - 2 * latents_NE @ codes_KE.T
    return np.argmin(distance_NK, axis=-1).reshape(len(x), -1)

  def of_object(self, mask_HW: np.ndarray, box) -> tuple[int, ...]:
    """The sixteen codes of a mask of the whole image, in its box y0, x0, y1, x1."""
    return tuple(int(n) for n in self(masks.crop(mask_HW, box)[None])[0])

  def _conv(self, name, x, stride=1):
    kernel_HWIO, bias = self._layers[name]
    side = kernel_HWIO.shape[0]
    totals = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[1:3]]
    pads = [(total // 2, total - total // 2) for total in totals]  # "SAME": the odd zero is last.
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    windows_BRCIHW = windows[:, ::stride, ::stride]
    return np.tensordot(windows_BRCIHW, kernel_HWIO, axes=((3, 4, 5), (2, 0, 1))) + bias


@functools.lru_cache(maxsize=2)
def load(name: str) -> MaskEncoder:
  """The encoder in an .npz file of formats/seg_vae_npz.py, or "oi"."""
  return MaskEncoder(seg_vae_npz.load(name))
