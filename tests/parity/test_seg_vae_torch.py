"""The VQ-VAE of masks against its layers written in torch, from the same file's arrays."""

import jax
import numpy as np
import pytest

from pgjax.models import seg_vae

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity


def same(x, side, stride):
  """TensorFlow's "SAME": the odd zero goes after."""
  total = max((-(-x.shape[-1] // stride) - 1) * stride + side - x.shape[-1], 0)
  before, after = total // 2, total - total // 2
  return F.pad(x, (before, after, before, after))


class Torch:
  def __init__(self, arrays):
    self.arrays = {name: torch.tensor(a) for name, a in arrays.items()}

  def layer(self, name):
    return self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]

  def conv(self, name, x, stride=1):
    weight, bias = self.layer(name)
    return F.conv2d(same(x, weight.shape[-1], stride), weight, bias, stride)

  def residual(self, name, x):
    y = F.relu(self.conv(f"{name}.net.0", x))
    y = F.relu(self.conv(f"{name}.net.2", y))
    return x + self.conv(f"{name}.net.4", y)

  def latents(self, masks):
    x = 2 * (masks - 0.5)
    for i in (0, 2, 4, 6):
      x = F.relu(self.conv(f"encoder.{i}", x, stride=2))
    x = self.residual("encoder.9", self.residual("encoder.8", x))
    return self.conv("encoder.10", x)

  def encode(self, masks):
    vectors = self.latents(masks).permute(0, 2, 3, 1)
    codebook = self.arrays["_vq_vae._embedding"]
    distance = torch.cdist(vectors.reshape(-1, codebook.shape[1]).double(), codebook.double())
    return distance.argmin(-1).reshape(len(masks), 16)

  def decode(self, codes):
    x = self.arrays["_vq_vae._embedding"][codes].reshape(len(codes), 4, 4, -1).permute(0, 3, 1, 2)
    x = F.relu(F.conv2d(x, *self.layer("decoder.0")))
    x = self.residual("decoder.3", self.residual("decoder.2", x))
    for i in (4, 6, 8, 10):
      x = F.relu(F.conv_transpose2d(x, *self.layer(f"decoder.{i}"), stride=2, padding=1))
    return F.conv2d(x, *self.layer("decoder.12"))


@pytest.mark.parametrize("side", [4, 3])
def test_codes_and_masks_are_those_of_torch(side):
  arrays = seg_vae.to_arrays(seg_vae.init(jax.random.key(0), embed_dim=512))
  rng = np.random.default_rng(0)
  for name, a in arrays.items():
    shape = (
      (*a.shape[:2], side, side) if name in (f"encoder.{i}.weight" for i in "0246") else a.shape
    )
    scale = 1.0 if a.ndim < 3 else 1.5 / np.sqrt(np.prod(shape[1:]))
    arrays[name] = rng.normal(scale=scale, size=shape).astype(np.float32)
  params, reference = seg_vae.from_arrays(arrays), Torch(arrays)
  masks = rng.uniform(size=(6, 64, 64, 1)).astype(np.float32).round(1)
  as_torch = torch.tensor(masks).permute(0, 3, 1, 2)
  ours = np.asarray(seg_vae.latents(params, jax.numpy.asarray(masks)))
  theirs = reference.latents(as_torch).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
  codes = np.asarray(seg_vae.encode(params, masks))
  np.testing.assert_array_equal(codes, reference.encode(as_torch).numpy())
  assert len(np.unique(codes)) > 10
  codes = rng.integers(0, 128, (6, 16))
  ours = np.asarray(seg_vae.decode(params, codes))
  theirs = reference.decode(torch.tensor(codes)).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
