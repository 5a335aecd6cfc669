"""The text tower: Gemma 1 and Gemma 2, which differ in fields, not in code.

Parameters have big_vision's names and shapes (models/ppp/gemma.py of the reference), layers stacked
on axis 0. Activations, products and the residual stream have the compute dtype; norms, rotations
and the softmax are float32 inside.

Axes: B batch, T query, S key, N heads, K key/value heads, G = N/K queries per key/value head,
H head size, D width, F hidden size of the MLP, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from pgjax.errors import UserError
from pgjax.kernels import choice
from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import attention, geglu, kv_cache, lora, placement, read_weight, remat, residual
from pgjax.layers.rotary import Rotation, rotate, rotation

VOCAB_SIZE = 256_000 + 1024 + 128  # Gemma's pieces, <locNNNN>, <segNNN>.


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of one text tower; `get` builds it from a variant's name."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int = VOCAB_SIZE
  norm_eps: float = 1e-6
  attn_logits_softcap: float = 0.0  # 0: off.
  final_logits_softcap: float = 0.0  # 0: off, as in every transfer of the reference.
  query_pre_attn_norm: str | int | float = "rsqrt_head_dim"  # See query_scalar.
  post_norms: bool = False
  dropout: float = 0.0
  remat_policy: str | None = None  # See remat.py.
  attention: str = "auto"  # See kernels/choice.py.
  scan: bool = True  # False: the layers are unrolled; parameters stay stacked.
  cache_dtype: str | None = None  # Default: the compute dtype.

  @property
  def query_scalar(self) -> float:
    """Scores are divided by its root; Hugging Face's query_pre_attn_scalar."""
    named = {"rsqrt_head_dim": self.head_dim, "rsqrt_emb_per_head": self.width // self.num_heads}
    return float(named.get(self.query_pre_attn_norm, self.query_pre_attn_norm))


_SIZES = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")


def _variant(*sizes, **fields):
  return dict(zip(_SIZES, sizes, strict=True), **fields)


_GEMMA2 = dict(attn_logits_softcap=50.0, final_logits_softcap=30.0, post_norms=True)
_WIDE_HEADS = dict(query_pre_attn_norm="rsqrt_emb_per_head")
VARIANTS = {  # In the order of _SIZES.
  "gemma_2b": _variant(2048, 18, 16_384, 8, 1, 256),
  "gemma_7b": _variant(3072, 28, 24_576, 16, 16, 256),
  "gemma2_2b": _variant(2304, 26, 9216, 8, 4, 256, **_GEMMA2),
  "gemma2_9b": _variant(3584, 42, 14_336, 16, 8, 256, **_GEMMA2),
  "gemma2_27b": _variant(4608, 46, 36_864, 32, 16, 128, **_WIDE_HEADS, **_GEMMA2),
}


def get(variant="gemma_2b", **fields) -> Config:
  """The named variant with those of `fields` that are not None; any name, given all sizes."""
  known = {f.name for f in dataclasses.fields(Config)}
  if unknown := sorted(set(fields) - known):
    raise UserError(f"model.llm has no field {unknown}; allowed: variant, {', '.join(known)}.")
  fields = {name: value for name, value in fields.items() if value is not None}
  if variant not in VARIANTS and (missing := [s for s in _SIZES if s not in fields]):
    raise UserError(
      f"model.llm.variant={variant!r} is none of {', '.join(VARIANTS)}, and {missing} are not"
      " given: name a variant or give all sizes."
    )
  config = Config(**{**VARIANTS.get(variant, {}), **fields})
  if config.num_heads % config.num_kv_heads:
    raise UserError(
      f"model.llm: num_heads={config.num_heads} is no multiple of"
      f" num_kv_heads={config.num_kv_heads}."
    )
  if config.width % config.num_heads or config.head_dim % 2:
    raise UserError(
      f"model.llm: width={config.width} must be a multiple of num_heads={config.num_heads}, and"
      f" head_dim={config.head_dim} an even number, because positions rotate pairs of numbers."
    )
  norm = config.query_pre_attn_norm
  if isinstance(norm, str) and norm not in ("rsqrt_head_dim", "rsqrt_emb_per_head"):
    raise UserError(
      f"model.llm.query_pre_attn_norm={norm!r} must be rsqrt_head_dim,"
      " rsqrt_emb_per_head, or the number that the scores are divided by the root of."
    )
  return config


def find_variant(sizes: Mapping[str, Any], *, post_norms: bool) -> str | None:
  """The name of the published variant with these sizes and norms, or None."""
  for variant, known in VARIANTS.items():
    if known.get("post_norms", False) == post_norms and sizes.items() <= known.items():
      return variant
  return None


class Mode(NamedTuple):
  """What a call is for; static under jit."""

  train: bool = False  # Dropout is on.
  fill_cache: bool = False  # Prefill: return the keys and values, rounded to `cache_dtype`.
  only_cache: bool = False  # With fill_cache: and nothing else.


_EVALUATE, _PREFILL = Mode(), Mode(fill_cache=True)


class Einsum(nn.Module):
  """A weight `w`, for the product that its caller computes."""

  shape: tuple[int, ...]
  in_axis: tuple[int, ...]
  out_axis: tuple[int, ...]
  dtype: str

  @nn.compact
  def __call__(self) -> lora.Linear:
    init = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=self.in_axis, out_axis=self.out_axis, batch_axis=()
    )
    return read_weight.read(self, "w", init, self.shape, self.dtype)


class Attention(nn.Module):
  """Multi-query, grouped or multi-head attention over x itself or over x and a cache."""

  config: Config
  dtype: str
  constrain: placement.Placement

  def setup(self):
    c = self.config
    N, K, D, H = c.num_heads, c.num_kv_heads, c.width, c.head_dim
    if K == N:  # The reference fuses the three where there is one key head per query head.
      self.qkv_einsum = Einsum((3, N, D, H), (2,), (1, 3), self.dtype)
    else:
      self.q_einsum = Einsum((N, D, H), (1,), (0, 2), self.dtype)
      self.kv_einsum = Einsum((2, K, D, H), (2,), (1, 3), self.dtype)
    self.attn_vec_einsum = Einsum((N, H, D), (0, 1), (2,), self.dtype)

  def __call__(self, x_BTD, turn, mask, mode=_EVALUATE, cache=None, slot=None):
    """(output, cache): the given cache updated; with `fill_cache` a new one, else None."""
    c = self.config
    B, T, _ = x_BTD.shape
    place = self.constrain.inside
    q_BTNH, k_BTKH, v_BTKH = self._projected(x_BTD)
    q_BTNH = place(q_BTNH, "BTNH")
    q_BTNH = (rotate(q_BTNH, turn) * c.query_scalar**-0.5).astype(self.dtype)
    k_BTKH = rotate(k_BTKH, turn).astype(self.dtype)
    q_BTNH, k_BTKH, v_BTKH = (
      checkpoint_name(a, n) for a, n in ((q_BTNH, "q"), (k_BTKH, "k"), (v_BTKH, "v"))
    )
    k_BTKH, v_BTKH = (self._of_queries(a) for a in (k_BTKH, v_BTKH))
    if mode.fill_cache or cache is not None:
      new = kv_cache.of(k_BTKH, v_BTKH, c.cache_dtype or self.dtype)
      cache = new if cache is None else cache.written(new, slot)
      cache = kv_cache.Cache(place(cache.k_BKHS, "BKHS"), place(cache.v_BKSH, "BKSH"))
      if mode.only_cache:
        return None, cache
      k_BTKH = jnp.transpose(cache.k_BKHS, (0, 3, 1, 2)).astype(self.dtype)
      v_BTKH = jnp.swapaxes(cache.v_BKSH, 1, 2).astype(self.dtype)
    q_BTKGH = q_BTNH.reshape(B, T, k_BTKH.shape[2], -1, c.head_dim)
    out_BTKGH = attention.dot_product(
      q_BTKGH,
      k_BTKH,
      v_BTKH,
      mask,
      implementation=c.attention,
      softcap=c.attn_logits_softcap,
      constrain=self.constrain,
    )
    out_BTNH = place(out_BTKGH.reshape(q_BTNH.shape), "BTNH")
    out_NHD = self.constrain.weight(self.attn_vec_einsum(), "NHD")
    out_BTD = lora.product("BTNH,NHD->BTD", out_BTNH, out_NHD)
    return checkpoint_name(place(out_BTD, "BTD"), "attn_proj"), cache

  def _of_queries(self, x_BTKH):
    """Keys or values of all tokens and of the heads that a device's queries need."""
    copies = self.constrain.copies_of_kv(self.config.num_heads, self.config.num_kv_heads)
    x_BTKH = jnp.repeat(x_BTKH, copies, axis=2) if copies > 1 else x_BTKH
    return self.constrain.gathered_keys(x_BTKH)

  def _projected(self, x_BTD):
    """Queries, keys and values before their rotation."""
    if (fused := self.get_variable("params", "qkv")) is not None:  # inference/decode_weights.py
      return self._projected_by(fused, x_BTD)
    q_NDH, *kv = self._weights()
    q_BTNH = lora.product("BTD,NDH->BTNH", x_BTD, self.constrain.weight(q_NDH, "NDH"))
    if len(kv) == 1:
      return q_BTNH, *lora.parts("BTD,CKDH->BTCKH", x_BTD, kv[0])
    kv = (self.constrain.weight(w_KDH, "KDH") for w_KDH in kv)
    return q_BTNH, *(lora.product("BTD,KDH->BTKH", x_BTD, w_KDH) for w_KDH in kv)

  def _projected_by(self, fused, x_BTD):
    """The same by one product, with heads in the order of the cache."""
    y_BTKXH = lora.product("BTD,KXDH->BTKXH", x_BTD, fused)
    q_BTKGH, k_BTKH, v_BTKH = y_BTKXH[..., :-2, :], y_BTKXH[..., -2, :], y_BTKXH[..., -1, :]
    return q_BTKGH.reshape(*x_BTD.shape[:2], -1, self.config.head_dim), k_BTKH, v_BTKH

  def _weights(self):
    if self.config.num_kv_heads == self.config.num_heads:
      qkv = self.qkv_einsum()
      return qkv[0], qkv[1], qkv[2]
    q, kv = self.q_einsum(), self.kv_einsum()
    return (q, kv) if lora.is_by_rows(kv) else (q, kv[0], kv[1])


class FeedForward(nn.Module):
  """GeGLU: gelu(x gate) * (x up), times linear; the tanh form of gelu."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    D, F = self.config.width, self.config.mlp_dim
    init = nn.initializers.variance_scaling
    gating_init = init(1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0)
    gating_2DF = read_weight.read(self, "gating_einsum", gating_init, (2, D, F), self.dtype)
    linear_FD = read_weight.read(self, "linear", init(1.0, "fan_in", "normal"), (F, D), self.dtype)
    gating_2DF = self.constrain.weight(gating_2DF, "2DF")
    linear_FD = self.constrain.weight(linear_FD, "FD")
    chunks = remat.mlp_chunks(self.config.remat_policy, x_BTD.shape[1])
    if chunks == 1 or self.constrain.sequence > 1:  # Tokens are split over devices already.
      return geglu.geglu(x_BTD, gating_2DF, linear_FD, self.constrain)
    out_BTD = geglu.chunked(x_BTD, gating_2DF, linear_FD, chunks, self.constrain)
    return checkpoint_name(out_BTD, "mlp_out")


class Block(nn.Module):
  """One layer; returns (its residual stream, its cache or None)."""

  config: Config
  dtype: str
  constrain: placement.Placement

  @nn.compact
  def __call__(self, x_BTD, turn, mask, mode, cache=None, slot=None):
    c = self.config
    dropout = nn.Dropout(c.dropout, deterministic=not mode.train)
    norm = lambda name: residual.RMSNorm(c.width, name=name)()  # noqa: E731
    shape = choice.Shape(x_BTD.shape[1], c.head_dim, self.dtype, c.attn_logits_softcap)
    kernels = attention.is_kernel(c.attention, shape, self.constrain)
    how = dict(eps=c.norm_eps, kernels=kernels, constrain=self.constrain)

    def add(x_BTD, h, name, before):  # Dropout is after this norm, but before the next one.
      post = norm(name) if c.post_norms else None
      if c.dropout and post is not None and name == "post_attention_norm":
        h, post = residual.normed(h, post, c.norm_eps), None
      return residual.added(x_BTD, dropout(h), post, before, **how)

    x_BTD = self.constrain(x_BTD, "BTD")
    x_BTD, h = residual.added(x_BTD, None, None, norm("pre_attention_norm"), **how)
    h, cache = Attention(c, self.dtype, self.constrain, name="attn")(
      h, turn, mask, mode, cache, slot
    )
    if mode.only_cache:
      return None, cache
    x_BTD, h = add(x_BTD, h, "post_attention_norm", norm("pre_ffw_norm"))
    h = FeedForward(c, self.dtype, self.constrain, name="mlp")(h)
    return add(x_BTD, h, "post_ffw_norm", None)[0], cache


class Embedder(nn.Module):
  """The token table, for embeddings (layers/embedding.py) and the loss (cross_entropy.py)."""

  config: Config

  @nn.compact
  def __call__(self) -> Float[Array, "V D"]:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
    return self.param("input_embedding", init, (self.config.vocab_size, self.config.width))


class Gemma(nn.Module):
  """Token table, layers and final norm; layers/embedding.py embeds and scores tokens."""

  config: Config
  dtype: str
  constrain: placement.Placement

  def setup(self):
    c = self.config
    self.embedder = Embedder(c)
    block = remat.checkpointed(Block, c.remat_policy, static_argnums=(4,))  # mode
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.depth,
      unroll=1 if c.scan else c.depth,
      # The check traces a layer twice, but the first weights of a seed depend on it.
      check_constancy_invariants=self.is_initializing(),
    )(c, self.dtype, self.constrain)
    self.final_norm = residual.RMSNorm(c.width)

  def table(self) -> Float[Array, "V D"]:
    return self.embedder()

  def norm(self, x_BTD):
    return residual.normed(x_BTD, self.final_norm(), self.config.norm_eps)

  def __call__(
    self,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "#B T"],  # One row: those of all.
    visible: VisibleKeys,
    mode: Mode = _EVALUATE,
  ):
    """Runs the layers: x before the final norm."""
    turn = rotation(positions_BT, self.config.head_dim)
    return self.layers(x_BTD, turn, visible, mode)[0]

  def prefill(
    self,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "B T"],
    visible: VisibleKeys,
    kernels: bool = True,  # False: the last token's attention in the last layer is plain.
  ):
    """(x of the last token before the final norm [B, 1, D], the cache of each layer).

    In the last layer the other tokens get only keys and values: nothing reads their states.
    """
    c, T, last = self.config, x_BTD.shape[1], self.config.depth - 1
    block = Block(c, self.dtype, self.constrain, parent=None)
    turn = rotation(positions_BT, c.head_dim)

    def layer(x_BTD, i, mode=_PREFILL):
      return block.apply({"params": self._layer_params(i)}, x_BTD, turn, visible, mode)

    x_BTD, stack = jax.lax.scan(layer, x_BTD, jnp.arange(last), unroll=1 if c.scan else True)
    caches = [jax.tree.map(lambda a, i=i: a[i], stack) for i in range(last)]
    _, cache = layer(x_BTD, last, _PREFILL._replace(only_cache=True))
    mask_B1S = VisibleKeys(visible.end_BT[:, -1:], visible.valid_BS).mask(T)
    x_B1D, cache = self._for_new_tokens(kernels).apply(
      {"params": self._layer_params(last)},
      x_BTD[:, -1:],
      jax.tree.map(lambda a: a[:, -1:], turn),
      mask_B1S,
      _EVALUATE,
      cache,
      T - 1,
    )
    return x_B1D, (*caches, cache)

  def extend(
    self,
    x_BTD: Float[Array, "B T D"],
    turn: Rotation,
    mask_BTS: Bool[Array, "B T S"],
    caches: tuple[kv_cache.Cache, ...],
    slot: Int[Array, ""],
    layers: Sequence[Any] | None = None,  # Of `layer_params`, to unstack the parameters only once.
    kernels: bool = True,  # False: attention is plain.
  ):
    """Runs the layers one by one, writing T tokens, turned by `turn`, at `slot`: (x, caches)."""
    block, written = self._for_new_tokens(kernels), []
    for params, cache in zip(layers or self.layer_params(), caches, strict=True):
      x_BTD, cache = block.apply({"params": params}, x_BTD, turn, mask_BTS, _EVALUATE, cache, slot)
      written.append(cache)
    return x_BTD, tuple(written)

  def _for_new_tokens(self, kernels):
    """A layer for tokens that attend to a cache."""
    config = self.config if kernels else dataclasses.replace(self.config, attention="plain")
    return Block(config, self.dtype, self.constrain._replace(splits_tokens=False), parent=None)

  def layer_params(self):
    """The parameters of each layer, unstacked."""
    return [self._layer_params(i) for i in range(self.config.depth)]

  def _layer_params(self, i):
    return jax.tree.map(lambda a: a[i], self.layers.variables["params"])
