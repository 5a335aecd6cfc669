"""How do sixteen <seg> tokens encode a mask?

With a VQ-VAE (arXiv:1711.00937) of 64 x 64 masks: the encoder maps a mask to a 4 x 4 grid of
vectors, each is replaced by the nearest of 128 codes, and the decoder maps these to a mask. All
sizes are those of the weights; PaliGemma's are big_vision's vae-oid.npz.

Axes: B masks, H W pixels, R rows and C columns of the grid, E width of a code, K codes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pgjax.errors import UserError

MASK_SIZE = 64
GRID = 4
CODEBOOK = "_vq_vae._embedding"
_DOWN, _DOWN_RES, _DOWN_OUT = ("0", "2", "4", "6"), ("8", "9"), "10"
_UP_IN, _UP_RES, _UP, _UP_OUT = "0", ("2", "3"), ("4", "6", "8", "10"), "12"

Params = Mapping[str, Any]  # {"codebook": [K, E], "encoder": {name: {kernel, bias}}, "decoder": ..}
Sizes = Mapping[str, tuple[int, int]]  # Of each layer: side of the kernel, channels out.


class _Layers(nn.Module):
  """The layers of encoder and decoder; their names are PyTorch's."""

  sizes: Sizes

  def _conv(self, name, x, stride=1):
    side, channels = self.sizes[name]
    return nn.Conv(channels, (side, side), (stride, stride), padding="SAME", name=name)(x)

  def _residual(self, name, x):
    y = nn.relu(self._conv(f"{name}.net.0", x))
    y = nn.relu(self._conv(f"{name}.net.2", y))
    return x + self._conv(f"{name}.net.4", y)


class Encoder(_Layers):
  """Masks in [0, 1] -> vectors: four halvings, two residual blocks."""

  @nn.compact
  def __call__(self, masks_BHW1: Float[Array, "B H W 1"]) -> Float[Array, "B R C E"]:
    x = 2 * (masks_BHW1 - 0.5)
    for name in _DOWN:
      x = nn.relu(self._conv(name, x, stride=2))
    for name in _DOWN_RES:
      x = self._residual(name, x)
    return self._conv(_DOWN_OUT, x)


class Decoder(_Layers):
  """Vectors -> masks; above 0 is inside, and no bound limits the numbers."""

  @nn.compact
  def __call__(self, codes_BRCE: Float[Array, "B R C E"]) -> Float[Array, "B H W 1"]:
    x = nn.relu(self._conv(_UP_IN, codes_BRCE))
    for name in _UP_RES:
      x = self._residual(name, x)
    for name in _UP:
      side, channels = self.sizes[name]
      pad = (side // 2, side // 2)  # In the dilated input; PyTorch's padding side/2 - 1.
      double = nn.ConvTranspose(
        channels, (side, side), (2, 2), padding=(pad, pad), transpose_kernel=True, name=name
      )
      x = nn.relu(double(x))
    return self._conv(_UP_OUT, x)


def encode(
  params: Params, masks_BHW1: Float[Array | np.ndarray, "B 64 64 1"]
) -> Int[Array, "B 16"]:
  """Codes of masks in [0, 1], row by row of the grid."""
  return _in_few_sizes(_encode, params, jnp.asarray(masks_BHW1, jnp.float32))


def decode(params: Params, codes_BN: Int[Array | np.ndarray, "B 16"]) -> Float[Array, "B 64 64 1"]:
  """Masks of codes; above 0 is inside."""
  return _in_few_sizes(_decode, params, jnp.asarray(codes_BN))


def _in_few_sizes(run, params, batch):
  """run(params, batch), for batches padded to powers of two, so that few are compiled."""
  missing = (1 << max(0, len(batch) - 1).bit_length()) - len(batch)
  padded = jnp.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
  return run(params, padded)[: len(batch)]


@jax.jit
def _encode(params, masks_BHW1):
  codes_BRC = nearest(params["codebook"], latents(params, masks_BHW1))
  return codes_BRC.reshape(len(codes_BRC), -1)


@jax.jit
def _decode(params, codes_BN):
  codes_BNE = jnp.asarray(params["codebook"])[codes_BN]
  return reconstructed(params, codes_BNE.reshape(len(codes_BN), GRID, GRID, -1))


def latents(params: Params, masks_BHW1: Float[Array, "B H W 1"]) -> Float[Array, "B R C E"]:
  """The encoder's vectors, before the codebook."""
  return Encoder(_sizes(params["encoder"], _DOWN)).apply({"params": params["encoder"]}, masks_BHW1)


def nearest(
  codebook_KE: Float[Array | np.ndarray, "K E"], latents_BRCE: Float[Array, "B R C E"]
) -> Int[Array, "B R C"]:
  """The nearest code of each vector, the first of equally near ones."""
  product_BRCK = jnp.einsum("BRCE,KE->BRCK", latents_BRCE, codebook_KE, precision="highest")
  squares_BRC1 = jnp.sum(latents_BRCE**2, -1, keepdims=True)
  distance_BRCK = squares_BRC1 + jnp.sum(jnp.square(codebook_KE), -1) - 2 * product_BRCK
  return jnp.argmin(distance_BRCK, axis=-1)


def reconstructed(params: Params, codes_BRCE: Float[Array, "B R C E"]) -> Float[Array, "B H W 1"]:
  """The decoder's masks of vectors."""
  return Decoder(_sizes(params["decoder"], ())).apply({"params": params["decoder"]}, codes_BRCE)


def _sizes(layers, down) -> Sizes:
  """The sizes of one half's layers; a transposed kernel has output channels before input ones."""
  transposed = () if down else _UP
  return {
    name: (layer["kernel"].shape[0], layer["kernel"].shape[2 if name in transposed else 3])
    for name, layer in layers.items()
  }


def init(
  key: jax.Array, *, width: int = 128, embed_dim: int = 512, num_codes: int = 128
) -> dict[str, Any]:
  """Random weights in big_vision's shapes; the encoder's are unpublished, so these are our own."""
  channels = [max(8, width // n) for n in (4, 2, 1, 1)]
  encoder = {name: (4, c) for name, c in zip(_DOWN, channels, strict=True)}
  encoder |= _residual_sizes(_DOWN_RES, width) | {_DOWN_OUT: (3, embed_dim)}
  decoder = {_UP_IN: (1, width), **_residual_sizes(_UP_RES, width), _UP_OUT: (1, 1)}
  channels = [max(8, width // n) for n in (1, 2, 4, 8)]
  decoder |= {name: (4, c) for name, c in zip(_UP, channels, strict=True)}
  keys = jax.random.split(key, 3)
  return {
    "codebook": jax.random.normal(keys[0], (num_codes, embed_dim)),
    "encoder": Encoder(encoder).init(keys[1], jnp.zeros((1, MASK_SIZE, MASK_SIZE, 1)))["params"],
    "decoder": Decoder(decoder).init(keys[2], jnp.zeros((1, GRID, GRID, embed_dim)))["params"],
  }


def _residual_sizes(names, width):
  sides = {"0": 3, "2": 3, "4": 1}
  return {f"{name}.net.{i}": (side, width) for name in names for i, side in sides.items()}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The tree, from PyTorch's arrays ([out, in, H, W]; transposed ones [in, out, H, W])."""
  names = _layer_names()
  wanted = [CODEBOOK, *(f"{n}.{part}" for n in names for part in ("weight", "bias"))]
  if missing := [name for name in wanted if name not in arrays]:
    raise UserError(
      f"these weights are not a VQ-VAE of masks: {', '.join(missing[:3])} and"
      f" {max(0, len(missing) - 3)} more are missing of {len(wanted)} arrays"
    )
  _check_shapes({name: arrays[name].shape for name in wanted})
  tree: dict[str, Any] = {"codebook": arrays[CODEBOOK], "encoder": {}, "decoder": {}}
  for name in names:
    half, layer = name.split(".", 1)
    kernel = np.transpose(arrays[f"{name}.weight"], (2, 3, 1, 0))
    tree[half][layer] = {"kernel": kernel, "bias": arrays[f"{name}.bias"]}
  return tree


def to_arrays(params: Params) -> dict[str, np.ndarray]:
  """The inverse of `from_arrays`."""
  arrays = {CODEBOOK: np.asarray(params["codebook"])}
  for name in _layer_names():
    half, layer = name.split(".", 1)
    weights = params[half][layer]
    arrays[f"{name}.weight"] = np.transpose(np.asarray(weights["kernel"]), (3, 2, 0, 1))
    arrays[f"{name}.bias"] = np.asarray(weights["bias"])
  return arrays


def _layer_names() -> list[str]:
  """All layers, in the order in which they are applied."""
  inner = lambda names: [f"{name}.net.{i}" for name in names for i in (0, 2, 4)]  # noqa: E731
  encoder = [*_DOWN, *inner(_DOWN_RES), _DOWN_OUT]
  decoder = [_UP_IN, *inner(_UP_RES), *_UP, _UP_OUT]
  return [f"encoder.{name}" for name in encoder] + [f"decoder.{name}" for name in decoder]


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Every layer's input channels are its predecessor's outputs; residual blocks change none."""
  if len(shapes[CODEBOOK]) != 2:
    raise UserError(f"{CODEBOOK} is {shapes[CODEBOOK]}; a codebook is [codes, width of a code]")
  channels, before = 1, 1
  for name in _layer_names():
    half, layer = name.split(".", 1)
    if name == "decoder.0" and channels != shapes[CODEBOOK][1]:
      raise UserError(f"the encoder gives {channels} channels, the codebook has {shapes[CODEBOOK]}")
    transposed = half == "decoder" and layer in _UP
    shape, bias = shapes[f"{name}.weight"], shapes[f"{name}.bias"]
    order = "in, out" if transposed else "out, in"
    fits = len(shape) == 4 and shape[2] == shape[3] and shape[0 if transposed else 1] == channels
    if not fits or bias != (shape[1 if transposed else 0],):
      raise UserError(
        f"{name}: its weight is {shape} and its bias {bias}; with {channels} channels coming in, a"
        f" weight is [{order}, side, side]"
      )
    if (transposed and shape[2] % 2) or (half == "encoder" and layer in _DOWN and shape[2] < 2):
      raise UserError(f"{name}: a kernel of side {shape[2]} does not halve or double a mask")
    before = channels if layer.endswith("net.0") else before
    channels = bias[0]
    if layer.endswith("net.4") and channels != before:
      raise UserError(f"{name} gives {channels} channels, its block takes {before}")
  if channels != 1:
    raise UserError(f"the decoder gives {channels} channels; a mask has one")
