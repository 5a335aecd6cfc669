"""The image tower: SigLIP's ViT without pooling, and the connector to the text tower's width.

Parameters have big_vision's names and shapes (models/vit.py of the reference), layers stacked on
axis 0. Axes: B images, P patches, D width, F hidden size of the MLP, N heads, H head size.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pgjax.errors import UserError
from pgjax.kernels import choice
from pgjax.layers import attention, geglu, lora, placement, read_weight, remat, residual


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of one image tower; `get` builds it from a variant's name."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: tuple[int, int]
  pool_type: str = "none"
  posemb: str = "learn"
  dropout: float = 0.0
  remat_policy: str | None = None  # See remat.py.
  attention: str = "auto"  # See kernels/choice.py.
  scan: bool = True  # False: the layers are unrolled; parameters stay stacked.
  dtype_mm: str | None = None  # Default: the model's compute dtype.


_WIDTHS = {
  "Ti": dict(width=192, depth=12, mlp_dim=768, num_heads=3),
  "S": dict(width=384, depth=12, mlp_dim=1536, num_heads=6),
  "B": dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "L": dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "So400m": dict(width=1152, depth=27, mlp_dim=4304, num_heads=16),
}
_SIZES = ("width", "depth", "mlp_dim", "num_heads", "patch_size")


def get(variant="So400m/14", **fields) -> Config:
  """The variant SIZE/PATCH with those of `fields` that are not None; any name, given all sizes."""
  known = {f.name for f in dataclasses.fields(Config)}
  if unknown := sorted(set(fields) - known):
    raise UserError(f"model.img has no field {unknown}; allowed: variant, {', '.join(known)}.")
  size, _, patch = (variant or "").partition("/")
  named = dict(_WIDTHS.get(size, {}))
  if patch.isdigit():
    named["patch_size"] = (int(patch), int(patch))
  fields = named | {name: value for name, value in fields.items() if value is not None}
  if missing := [s for s in _SIZES if s not in fields]:
    raise UserError(
      f"model.img.variant={variant!r} is not SIZE/PATCH with a size of {', '.join(_WIDTHS)}, and"
      f" {missing} are not given: name a variant such as 'So400m/14' or give all sizes."
    )
  patch = fields["patch_size"]
  fields["patch_size"] = (patch, patch) if isinstance(patch, int) else tuple(patch)
  config = Config(**fields)
  for name, allowed in (("pool_type", "none"), ("posemb", "learn"), ("dropout", 0.0)):
    if getattr(config, name) != allowed:
      raise UserError(
        f"model.img.{name}={getattr(config, name)!r}: PaliGemma's image tower has {allowed!r}."
      )
  if config.width % config.num_heads:
    raise UserError(
      f"model.img: width={config.width} is no multiple of num_heads={config.num_heads}."
    )
  return config


def find_variant(sizes: Mapping[str, Any]) -> dict[str, Any]:
  """Fields for `get`: the published variant with these sizes, else the sizes."""
  custom = dict(variant="custom", **sizes)
  for size in _WIDTHS:
    named = dict(variant=f"{size}/{sizes['patch_size']}")
    if get(**named) == get(**custom):
      return named
  return custom


class Dense(nn.Module):
  """A product with a kernel, summed as in `equation`, plus a bias."""

  equation: str  # Such as "BPD,DNH->BPNH"; the kernel's axes begin with the summed ones.
  shape: tuple[int, ...]  # Of the kernel.
  dtype: str
  constrain: placement.Placement
  kernel_init: Any = nn.initializers.xavier_uniform()
  bias_init: Any = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel_axes, result = self.equation.split(",")[1].split("->")
    new = sum(axis in result for axis in kernel_axes)

    def init(key, shape):  # Initializers take matrices.
      matrix = math.prod(shape[:-new]), math.prod(shape[-new:])
      return self.kernel_init(key, matrix).reshape(shape)

    kernel = read_weight.read(self, "kernel", init, self.shape, self.dtype)
    kernel = self.constrain.weight(kernel, kernel_axes)
    bias = self.param("bias", self.bias_init, self.shape[-new:])
    y = lora.product(self.equation, x.astype(self.dtype), kernel)
    return self.constrain.inside(y, result) + bias.astype(self.dtype)


class Attention(nn.Module):
  """Multi-head attention over all patches, with biases and without a mask."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BPD: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
    c = self.config
    dense = functools.partial(Dense, dtype=self.dtype, constrain=self.constrain)
    heads = (c.num_heads, c.width // c.num_heads)
    shape = (x_BPD.shape[-1], *heads)
    q_BPNH, k_BPNH, v_BPNH = (
      checkpoint_name(dense("BPD,DNH->BPNH", shape, name=name)(x_BPD), f"img_{name}")
      for name in ("query", "key", "value")
    )
    k_BPNH, v_BPNH = (self.constrain.gathered_keys(a, "BPNH") for a in (k_BPNH, v_BPNH))
    q_BPNH = q_BPNH / jnp.asarray(heads[1] ** 0.5, self.dtype)
    # The reference rounds scores and softmax to the compute dtype here; this rounds the scores.
    how = dict(implementation=c.attention, score_dtype=self.dtype, constrain=self.constrain)
    out = attention.dot_product(q_BPNH[:, :, :, None], k_BPNH, v_BPNH, None, **how)
    out_BPD = dense("BPNH,NHD->BPD", (*heads, c.width), name="out")(out[:, :, :, 0])
    return checkpoint_name(out_BPD, "img_attn_proj")


class MlpBlock(nn.Module):
  """Two layers with gelu, in its tanh form, between them."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BPD: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
    D, F = x_BPD.shape[-1], self.config.mlp_dim
    init = dict(bias_init=nn.initializers.normal(1e-6))
    dense = functools.partial(Dense, dtype=self.dtype, constrain=self.constrain, **init)
    h = dense("BPD,DF->BPF", (D, F), name="Dense_0")(x_BPD)
    h = checkpoint_name(h, "img_mlp_up")
    h = geglu.gelu(h).astype(self.dtype)
    return dense("BPF,FD->BPD", (F, D), name="Dense_1")(h)


class Block(nn.Module):
  """One pre-norm layer."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BPD, _):
    c, fields = self.config, (self.config, self.dtype, self.constrain)
    first, second = (residual.LayerNorm(c.width, name=f"LayerNorm_{i}")() for i in range(2))
    shape = (x_BPD.shape[1], c.width // c.num_heads, self.dtype, 0.0, False)
    kernels = attention.is_kernel(c.attention, choice.Shape(*shape), self.constrain)
    how = dict(eps=1e-6, kernels=kernels, constrain=self.constrain)
    attn = Attention(*fields, name="MultiHeadDotProductAttention_0")
    mlp = MlpBlock(*fields, name="MlpBlock_0")
    x_BPD = self.constrain(x_BPD, "BPD")
    x_BPD, h_BPD = residual.added(x_BPD, None, None, first, **how)
    x_BPD, h_BPD = residual.added(x_BPD, attn(h_BPD), None, second, **how)
    return x_BPD + mlp(h_BPD), None


class Transformer(nn.Module):
  """The layers and the norm after them."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BPD: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
    c = self.config
    x_BPD, _ = nn.scan(
      remat.checkpointed(Block, c.remat_policy),
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=c.depth,
      unroll=1 if c.scan else c.depth,
      # The check traces a layer twice, but the first weights of a seed depend on it.
      check_constancy_invariants=self.is_initializing(),
    )(c, self.dtype, self.constrain, name="encoderblock")(x_BPD, None)
    return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x_BPD)


class SigLIP(nn.Module):
  """Images to soft tokens of the text tower's width; `head`, the connector, is initially zero."""

  config: Config
  out_width: int
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, image_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
    c = self.config
    dtype = c.dtype_mm or self.dtype
    height, width = image_BHWC.shape[1:3]
    if height % c.patch_size[0] or width % c.patch_size[1]:
      raise UserError(
        f"Images of {height}x{width} pixels are no multiple of the patch size"
        f" {c.patch_size[0]}x{c.patch_size[1]}; choose another `res` or model.img.patch_size."
      )
    x = nn.Conv(
      c.width, c.patch_size, strides=c.patch_size, padding="VALID", dtype=dtype, name="embedding"
    )(image_BHWC.astype(dtype))
    x_BPD = x.reshape(x.shape[0], -1, c.width)
    posemb = self.param(
      "pos_embedding", nn.initializers.normal(c.width**-0.5), (1, x_BPD.shape[1], c.width)
    )
    x_BPD = x_BPD + posemb.astype(dtype)
    x_BPD = Transformer(c, dtype, self.constrain, name="Transformer")(x_BPD)
    shape, init = (c.width, self.out_width), nn.initializers.zeros
    head = Dense("BPD,DE->BPE", shape, dtype, self.constrain, kernel_init=init, name="head")
    return head(x_BPD)
