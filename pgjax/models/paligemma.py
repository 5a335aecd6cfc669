"""PaliGemma: image tokens in front of text tokens, a mask over both, one text tower.

Axes: B batch, N images of an example, P patches (soft tokens) of all its images, T text tokens,
L = P + T, D width, V vocabulary. Tensors, masks, positions and scales are the reference's
(models/proj/paligemma/paligemma.py, predict_fns.py).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pgjax.errors import UserError
from pgjax.kernels import choice
from pgjax.kernels.visible_keys import VisibleKeys, valid_before
from pgjax.layers import embedding, kv_cache, placement, rotary
from pgjax.models import gemma, siglip

TOKEN_TABLE = "llm/embedder/input_embedding"
_DTYPES = ("float32", "bfloat16")


def prefix_lm_mask(
  mask_ar_BL: Int[Array | np.ndarray, "B L"],
  valid_BL: Bool[Array | np.ndarray, "B L"] | None = None,
) -> Bool[Array | np.ndarray, "B L L"]:
  """Which key each query may attend to.

  mask_ar 0 joins the preceding block, 1 begins a new one; a query attends to its own and all
  earlier blocks. Invalid tokens neither attend nor are attended to. Works on NumPy arrays too.
  """
  block_BL = mask_ar_BL.cumsum(axis=1)
  allowed = block_BL[:, None, :] <= block_BL[:, :, None]
  if valid_BL is not None:
    allowed = allowed & valid_BL[:, None, :] & valid_BL[:, :, None]
  return allowed


def prefix_lm_keys(
  mask_ar_BL: Int[Array, "B L"], valid_BL: Bool[Array, "B L"] | None = None
) -> VisibleKeys:
  """The same in numbers: a query attends to the keys before the block that follows its own."""
  L = mask_ar_BL.shape[1]
  begins_BL = jnp.where(mask_ar_BL != 0, jnp.arange(L), L)
  next_BL = jnp.pad(begins_BL[:, 1:], ((0, 0), (0, 1)), constant_values=L)
  end_BL = jax.lax.cummin(next_BL, axis=1, reverse=True)
  if valid_BL is not None:
    end_BL = jnp.where(valid_BL, end_BL, 0)
  return VisibleKeys(end_BL, valid_BL)


class Model(nn.Module):
  """`Model(**config.model)`; `__call__` is the whole forward pass.

  constrain: places activations on a mesh (layers/placement.py).
  """

  img: Any  # Fields of siglip.get, a dict or ConfigDict.
  llm: Any  # Fields of gemma.get.
  dtype: str = "float32"  # The compute dtype; parameters may have another.
  remat: str | None = None  # The policy of a tower that names none.
  attention: str = "auto"  # The implementation of a tower that names none (kernels/choice.py).
  cache_dtype: str | None = None
  kernels: bool = True  # Of the training step, beside attention: see training/step_check.py.
  constrain: placement.Placement = placement.NO_MESH

  @property
  def llm_config(self) -> gemma.Config:
    defaults = dict(self._of_both_towers(), cache_dtype=self.cache_dtype)
    return gemma.get(**(defaults | _given(self.llm)))

  @property
  def img_config(self) -> siglip.Config:
    return siglip.get(**(self._of_both_towers() | _given(self.img)))

  def _of_both_towers(self):
    return dict(remat_policy=self.remat, attention=self.attention)

  def attention_choices(
    self, num_patches: int, num_tokens: int, device: choice.Device
  ) -> dict[str, choice.Choice]:
    """How each tower computes attention on such a device, for an example of these sizes.

    num_patches: of one image; num_tokens: of all images and the text.
    """
    llm, img, splits = self.llm_config, self.img_config, self.constrain.sequence > 1
    img_dtype = img.dtype_mm or self.dtype
    softcap = llm.attn_logits_softcap
    text = choice.Shape(num_tokens, llm.head_dim, self.dtype, softcap, True, splits)
    head_size = img.width // img.num_heads
    image = choice.Shape(num_patches, head_size, img_dtype, 0.0, False, splits)
    return dict(
      llm=choice.choose(llm.attention, text, device),
      img=choice.choose(img.attention, image, device),
    )

  def setup(self):
    if self.dtype not in _DTYPES:
      raise UserError(f"dtype={self.dtype!r} is not a compute dtype; allowed: {_DTYPES}.")
    llm = self.llm_config
    self.img_tower = siglip.SigLIP(
      self.img_config, llm.width, self.dtype, self.constrain, name="img"
    )
    self.llm_tower = gemma.Gemma(llm, self.dtype, self.constrain, name="llm")

  def __call__(
    self,
    image: Float[Array, "B H W 3"] | Float[Array, "B N H W 3"],
    text: Int[Array, "B T"],
    mask_ar: Int[Array, "B T"],
    train: bool = False,
    image_mask: Bool[Array, "B N"] | None = None,
  ):
    """(logits float32 [B, T, V], {"img/zimg": image embedding [B, P, D]})."""
    zimg = self.embed_image(image)
    x_BTD = embedding.embed(self.table(), text)
    h_BTD = self.hidden(zimg, x_BTD, mask_ar, train=train, image_mask=image_mask)
    return self.logits(h_BTD), {"img/zimg": zimg}

  def table(self) -> Float[Array, "V D"]:
    """The token table in its stored dtype."""
    return self.llm_tower.table()

  def embed_image(
    self, image: Float[Array, "B H W 3"] | Float[Array, "B N H W 3"]
  ) -> Float[Array, "B P D"]:
    """Soft tokens of one image, or of N in sequence; neither normed nor scaled."""
    if image.ndim == 4:
      return self.img_tower(image)
    B, N = image.shape[:2]
    z = self.img_tower(image.reshape(B * N, *image.shape[2:]))
    return z.reshape(B, N * z.shape[1], z.shape[2])

  def hidden(
    self,
    zimg: Float[Array, "B P D"],
    x_BTD: Float[Array, "B T D"],
    mask_ar: Int[Array, "B T"],
    *,
    train: bool = False,
    image_mask: Bool[Array, "B N"] | None = None,
  ) -> Float[Array, "B T D"]:
    """Normed states of the text tokens, from image tokens and embedded text.

    All text tokens are valid, as in the reference's training, where padding is last. Images that
    `image_mask` excludes are not attended to and have no positions.
    """
    B, P = zimg.shape[:2]
    T = x_BTD.shape[1]
    x_BTD, mask_ar = self._evenly_split(P, x_BTD, (mask_ar, 1))
    mask_ar_BL = jnp.concatenate([jnp.zeros((B, P), mask_ar.dtype), mask_ar], axis=1)
    L = mask_ar_BL.shape[1]
    positions_BL = jnp.arange(L)[None]
    valid_BL = None
    if image_mask is not None:
      valid_BL = _valid(image_mask, P, jnp.ones((B, L - P), bool))
      positions_BL = jnp.cumsum(valid_BL, axis=1) - 1
    x_BLD = jnp.concatenate([zimg.astype(self.dtype), x_BTD.astype(self.dtype)], axis=1)
    x_BLD = self.llm_tower(
      x_BLD, positions_BL, prefix_lm_keys(mask_ar_BL, valid_BL), gemma.Mode(train=train)
    )
    return self.llm_tower.norm(x_BLD[:, P : P + T])

  def logits(self, h_BTD: Float[Array, "*B D"], columns: bool = False) -> Float[Array, "*B V"]:
    """Float32 logits of normed states, soft-capped if the tower is; columns: see embedding.py."""
    softcap = self.llm_config.final_logits_softcap
    return embedding.logits(h_BTD, self.table(), softcap, columns=columns)

  def prefill(
    self,
    zimg: Float[Array, "B P D"],
    x_BTD: Float[Array, "B T D"],
    mask_ar: Int[Array, "B T"],
    mask_input: Bool[Array, "B T"],
    image_mask: Bool[Array, "B N"] | None,
    slots: int,
    kernels: bool = True,
  ):
    """Reads the prompts: (state of the last token [B, D], caches of L + slots, lengths [B]).

    Valid tokens move to the right end, so that every row's next token has the same slot.
    """
    B, P = zimg.shape[:2]
    x_BTD, mask_ar, mask_input = self._evenly_split(P, x_BTD, (mask_ar, 1), (mask_input, 0))
    valid_BL = _valid(image_mask, P, mask_input.astype(bool))
    mask_ar_BL = jnp.concatenate([jnp.zeros((B, P), mask_ar.dtype), mask_ar], axis=1)
    end_BL, _ = prefix_lm_keys(mask_ar_BL, valid_BL)
    x_BLD = jnp.concatenate([zimg.astype(self.dtype), x_BTD.astype(self.dtype)], axis=1)
    # Sorted, not rolled: the tokens of masked images are not at the end.
    order_BL = jnp.argsort(valid_BL, axis=1, stable=True)
    seen_BL = jnp.take_along_axis(valid_before(end_BL, valid_BL), order_BL, axis=1)
    padding_B1 = jnp.sum(~valid_BL, axis=1, keepdims=True)
    valid_BL = jnp.take_along_axis(valid_BL, order_BL, axis=1)
    visible = VisibleKeys(jnp.where(seen_BL > 0, seen_BL + padding_B1, 0), valid_BL)
    x_BLD = jnp.take_along_axis(x_BLD, order_BL[..., None], axis=1)
    positions_BL = jnp.cumsum(valid_BL, axis=1) - 1  # Padding gets -1.
    x_B1D, caches = self.llm_tower.prefill(x_BLD, positions_BL, visible, kernels)
    caches = tuple(cache.grown(slots) for cache in caches)
    return self.llm_tower.norm(x_B1D)[:, 0], caches, jnp.sum(valid_BL, axis=1)

  def extend(
    self,
    x_BND: Float[Array, "B N D"],
    caches: tuple[kv_cache.Cache, ...],
    turn: rotary.Rotation,
    mask_BNS: Bool[Array, "B N S"],
    slot: Int[Array, ""],
    layers: Sequence[Any] | None = None,  # Of `layer_params`, to unstack the parameters only once.
    kernels: bool = True,
  ):
    """N more tokens a row, turned by `turn`, written from `slot` on: (states [B, N, D], caches)."""
    x_BND = x_BND.astype(self.dtype)
    x_BND, caches = self.llm_tower.extend(x_BND, turn, mask_BNS, caches, slot, layers, kernels)
    return self.llm_tower.norm(x_BND), caches

  def layer_params(self):
    """The parameters of each layer of the text tower."""
    return self.llm_tower.layer_params()

  def _evenly_split(self, num_patches, x_BTD, *masks):
    """Text followed by padding that no token attends to, so that the mesh splits L evenly.

    masks: pairs (mask [B, T], its value at padding).
    """
    more = -(num_patches + x_BTD.shape[1]) % self.constrain.sequence
    x_BTD = jnp.pad(x_BTD, ((0, 0), (0, more), (0, 0)))
    return x_BTD, *(jnp.pad(m, ((0, 0), (0, more)), constant_values=v) for m, v in masks)


def _given(fields):
  """Without those that are None."""
  return {name: value for name, value in fields.items() if value is not None}


def _valid(image_mask, num_patches, text_valid_BT):
  """Which image and text tokens are not padding."""
  B = text_valid_BT.shape[0]
  if image_mask is None:
    image_valid = jnp.ones((B, num_patches), bool)
  else:
    image_valid = jnp.repeat(image_mask.astype(bool), num_patches // image_mask.shape[1], axis=1)
  return jnp.concatenate([image_valid, text_valid_BT], axis=1)
