"""Converts a Hugging Face config.json to the fields of a model, and back.

For PaliGemma 1 (text tower "gemma") and 2 ("gemma2"), as transformers 4.4x, 4.57 and 5.x write
them, with or without fields that equal its defaults. Unsupported values are errors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pgjax.errors import UserError
from pgjax.huggingface.names import IMAGE_ROWS
from pgjax.models import gemma, siglip

GELU = "gelu_pytorch_tanh"
ROPE_THETA = 10_000.0
MAX_POSITIONS = 8192
_SPECIAL_IDS = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
_DTYPES = ("float32", "bfloat16", "float16")

_SIZES = dict(
  width="hidden_size",
  depth="num_hidden_layers",
  mlp_dim="intermediate_size",
  num_heads="num_attention_heads",
)
_IMG_SIZES = _SIZES | dict(patch_size="patch_size")
_LLM_SIZES = _SIZES | dict(num_kv_heads="num_key_value_heads", head_dim="head_dim")
_NULLABLE = ("sliding_window", "final_logit_softcapping", "attn_logit_softcapping")


def _theirs(**sizes: int) -> dict[str, int]:
  return {_LLM_SIZES[ours]: size for ours, size in sizes.items()}


# Defaults of PaliGemmaConfig, SiglipVisionConfig, GemmaConfig and Gemma2Config, the same in
# transformers 4.57.6 and 5.23.0.
_TOP = dict(image_token_index=256_000, projection_dim=2048)
_VISION = _theirs(width=768, depth=12, mlp_dim=3072, num_heads=12) | dict(
  num_channels=3, image_size=224, patch_size=16, hidden_act=GELU, layer_norm_eps=1e-6
)
_GEMMA = _theirs(width=3072, depth=28, mlp_dim=24_576, num_heads=16, num_kv_heads=16, head_dim=256)
_GEMMA |= dict(vocab_size=256_000, hidden_act=GELU, rms_norm_eps=1e-6)
_GEMMA2 = _theirs(width=2304, depth=26, mlp_dim=9216, num_heads=8, num_kv_heads=4, head_dim=256)
_GEMMA2 |= dict(
  vocab_size=256_000,
  hidden_activation=GELU,
  rms_norm_eps=1e-6,
  query_pre_attn_scalar=256,
  sliding_window=4096,
  final_logit_softcapping=30.0,
  attn_logit_softcapping=50.0,
)
_TEXT = {"gemma": _GEMMA, "gemma2": _GEMMA2}


def model_fields(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """config.json -> dict(img=..., llm=...) for `paligemma.Model(**fields)`.

  A variant is named if all sizes fit, with fields that differ. The vocabulary is the text's: if
  <image> is in the last 64 rows of the token table, rows from there on are padding and excluded.
  """
  top, vision, text = _sections(config)
  fixed = dict(num_channels=3, hidden_act=GELU, layer_norm_eps=1e-6)
  _check_fixed("vision_config", vision, model_type="siglip_vision_model", **fixed)
  _check_text(text)
  width, rows, image = text["hidden_size"], text["vocab_size"], top["image_token_index"]
  if top["projection_dim"] != width:
    _refuse("projection_dim", top["projection_dim"], f"text_config.hidden_size, {width}")
  rows = image if rows - IMAGE_ROWS <= image < rows else rows
  return dict(img=_img_fields(vision), llm=_llm_fields(text, rows))


def res(config: Mapping[str, Any]) -> int:
  """Side length of an image in pixels."""
  return _square("vision_config.image_size", _sections(config)[1]["image_size"])


def image_token_id(config: Mapping[str, Any]) -> int:
  """The id of <image>."""
  return _sections(config)[0]["image_token_index"]


def vocab_size(config: Mapping[str, Any]) -> int:
  """Rows of the token table in the file, padding included (257,216 on the hub)."""
  return _sections(config)[2]["vocab_size"]


def notes(config: Mapping[str, Any]) -> list[str]:
  """Settings of the file that pgjax ignores, because they change nothing in ordinary use."""
  text = _sections(config)[2]
  ignored = []
  if _slides(text):
    ignored.append(
      f"config.json: every other layer looks back {text['sliding_window']:,} tokens only"
      " (sliding_window); here all layers see everything, as in big_vision, which differs for"
      f" more than {text['sliding_window']:,} tokens of image and text together."
    )
  if text.get("attention_dropout"):
    ignored.append(
      f"config.json: attention_dropout={text['attention_dropout']} is not used; set"
      " model.llm.dropout to drop activations in training."
    )
  return ignored


def config_json(
  fields: Mapping[str, Any],
  *,
  res: int,
  vocab_size: int | None = None,
  image_token_id: int | None = None,
  dtype: str = "bfloat16",
) -> dict[str, Any]:
  """config.json of `paligemma.Model(**fields)`, for transformers >= 4.47 and vLLM.

  Args:
    fields: `img` and `llm` are used, others ignored.
    res: side length of an image in pixels.
    vocab_size: rows of the token table in the file; None: the model's and 64 more, as on the hub.
    image_token_id: None: the first row after the model's vocabulary, as on the hub.
    dtype: of the weights in the file.
  """
  img, llm = siglip.get(**dict(fields["img"])), gemma.get(**dict(fields["llm"]))
  vocab_size = llm.vocab_size + IMAGE_ROWS if vocab_size is None else vocab_size
  image_token_id = llm.vocab_size if image_token_id is None else image_token_id
  patch = _square("model.img.patch_size", img.patch_size)
  if res % patch:
    raise UserError(f"res={res} is no multiple of the patch size {patch}.")
  if dtype not in _DTYPES:
    raise UserError(f"dtype={dtype!r} is none of {', '.join(_DTYPES)}.")
  patches = (res // patch) ** 2
  return dict(
    architectures=["PaliGemmaForConditionalGeneration"],
    model_type="paligemma",
    **_SPECIAL_IDS,
    dtype=dtype,
    torch_dtype=dtype,  # The same field under its name before transformers 4.56.
    hidden_size=llm.width,
    ignore_index=-100,
    image_token_index=image_token_id,
    num_image_tokens=patches,
    projection_dim=llm.width,
    tie_word_embeddings=True,
    vocab_size=vocab_size,
    vision_config=dict(
      model_type="siglip_vision_model",
      **{theirs: getattr(img, ours) for ours, theirs in _IMG_SIZES.items()} | {"patch_size": patch},
      attention_dropout=0.0,
      dtype=dtype,
      hidden_act=GELU,
      image_size=res,
      layer_norm_eps=1e-6,
      num_channels=3,
      num_image_tokens=patches,
      projection_dim=llm.width,
      projector_hidden_act="gelu_fast",
      torch_dtype=dtype,
      vision_use_head=False,
    ),
    text_config=_text_config(llm, vocab_size)
    | dict(dtype=dtype, num_image_tokens=patches, torch_dtype=dtype),
  )


def generation_config_json(max_new_tokens: int | None = None) -> dict[str, Any]:
  """generation_config.json: greedy; without a length, transformers stops at 20 tokens in total."""
  fields = dict(_SPECIAL_IDS, do_sample=False)
  return fields if max_new_tokens is None else fields | dict(max_new_tokens=max_new_tokens)


def _sections(config):
  """(top, vision, text) with defaults filled in; unknown fields are included."""
  if config.get("model_type") != "paligemma":
    raise UserError(
      f"model_type={config.get('model_type')!r} is not 'paligemma' (PaliGemma 1 or 2)."
    )
  for name in ("vision_config", "text_config"):
    if not isinstance(config.get(name), Mapping):
      raise UserError(f"{name} is missing, so the model's sizes are not known.")
  vision, text = config["vision_config"], config["text_config"]
  kind = text.get("model_type") or "gemma"
  if kind not in _TEXT:
    _refuse("text_config.model_type", kind, "'gemma' (PaliGemma 1) or 'gemma2' (PaliGemma 2)")
  top = dict(config)
  if top.get("image_token_index") is None:  # The name in files; transformers' code has the other.
    top["image_token_index"] = config.get("image_token_id")
  text = _filled(text, _TEXT[kind]) | dict(model_type=kind)
  return _filled(top, _TOP), _filled(vision, _VISION), text


def _filled(section, defaults):
  """`section` with defaults for absent fields; null is absent, except where null has a meaning."""
  given = {k: v for k, v in section.items() if v is not None or k in _NULLABLE}
  return defaults | given


def _check_fixed(name, section, **fixed):
  """Raises if one of these fields has another value."""
  for field, value in fixed.items():
    if section.get(field, value) != value:
      _refuse(f"{name}.{field}", section[field], repr(value))


def _check_text(text):
  activation = text.get("hidden_activation")
  if text["model_type"] == "gemma":
    # "gelu" in the first Gemma files means the tanh form too.
    activation = activation or text["hidden_act"].replace("gelu_fast", GELU)
    activation = GELU if activation == "gelu" else activation
  if activation != GELU:
    _refuse("text_config.hidden_activation", activation, repr(GELU))
  fixed = dict(attention_bias=False, tie_word_embeddings=True, use_bidirectional_attention=True)
  _check_fixed("text_config", text, **fixed)
  for name, rope in _ropes(text):
    if rope.get("rope_theta", ROPE_THETA) != ROPE_THETA:
      _refuse(f"text_config.{name}rope_theta", rope["rope_theta"], f"{ROPE_THETA:g}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
      _refuse(f"text_config.{name}rope_type", kind, "'default'")
  window = text.get("sliding_window")
  if _slides(text) and window < 4096:
    _refuse("text_config.sliding_window", window, "no window, or one of 4096 and more")


def _ropes(text):
  """(prefix for messages, dict) of every section that may set rotary embeddings."""
  yield "", {"rope_theta": text.get("rope_theta", ROPE_THETA)}
  for name in ("rope_scaling", "rope_parameters"):
    rope = text.get(name) or {}
    nested = {k: v for k, v in rope.items() if isinstance(v, Mapping)}  # One per kind of layer.
    yield f"{name}.", {k: v for k, v in rope.items() if k not in nested}
    for kind, inner in nested.items():
      yield f"{name}.{kind}.", inner


def _slides(text) -> bool:
  """Whether a layer has a sliding window; Gemma 2's files before 4.5x do not list which."""
  if text["model_type"] != "gemma2" or text["sliding_window"] is None:
    return False
  return "sliding_attention" in text.get("layer_types", ["sliding_attention"])


def _img_fields(vision):
  sizes = {ours: vision[theirs] for ours, theirs in _IMG_SIZES.items()}
  sizes["patch_size"] = _square("vision_config.patch_size", sizes["patch_size"])
  return siglip.find_variant(sizes)


def _llm_fields(text, rows):
  fields = {ours: text[theirs] for ours, theirs in _LLM_SIZES.items()}
  fields |= dict(vocab_size=rows, norm_eps=float(text["rms_norm_eps"]))
  if text["model_type"] == "gemma2":
    fields |= dict(
      post_norms=True,
      attn_logits_softcap=float(text["attn_logit_softcapping"] or 0.0),
      final_logits_softcap=float(text["final_logit_softcapping"] or 0.0),
      query_pre_attn_norm=_query_norm(text),
    )
  sizes = {name: fields[name] for name in _LLM_SIZES}
  if variant := gemma.find_variant(sizes, post_norms=text["model_type"] == "gemma2"):
    return dict(variant=variant, **_changed(fields, gemma.get(variant)))
  return dict(variant="custom", **sizes, **_changed(fields, gemma.get("custom", **sizes)))


def _query_norm(text) -> str | int:
  scalar = text["query_pre_attn_scalar"]
  if scalar == text["head_dim"]:
    return "rsqrt_head_dim"
  if scalar == text["hidden_size"] // text["num_attention_heads"]:
    return "rsqrt_emb_per_head"
  return scalar


def _changed(fields, config):
  """The fields that differ from `config`'s."""
  known = dataclasses.asdict(config)
  return {name: value for name, value in fields.items() if known[name] != value}


def _text_config(llm: gemma.Config, vocab_size):
  """text_config without dtypes and image tokens; a model with post_norms is Gemma 2."""
  fields = {theirs: getattr(llm, ours) for ours, theirs in _LLM_SIZES.items()}
  fields |= dict(
    model_type="gemma2" if llm.post_norms else "gemma",
    **_SPECIAL_IDS,
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act=GELU,
    hidden_activation=GELU,
    initializer_range=0.02,
    max_position_embeddings=MAX_POSITIONS,
    rms_norm_eps=llm.norm_eps,
    rope_parameters=dict(rope_theta=ROPE_THETA, rope_type="default"),
    rope_theta=ROPE_THETA,
    tie_word_embeddings=True,
    use_cache=True,
    vocab_size=vocab_size,
  )
  scalar = llm.query_scalar
  if not llm.post_norms:
    for name, value, only in (
      ("attn_logits_softcap", llm.attn_logits_softcap, 0.0),
      ("final_logits_softcap", llm.final_logits_softcap, 0.0),
      ("query_pre_attn_norm", scalar, llm.head_dim),
    ):
      if value != only:
        raise UserError(
          f"model.llm.{name}={value:g}: without post_norms, the text tower is Hugging Face's"
          f" 'gemma', which has {only:g} there."
        )
    return fields
  for value, whole in (
    (f"query_pre_attn_norm={scalar}", scalar == int(scalar)),
    (f"width={llm.width}/num_heads={llm.num_heads}", llm.width % llm.num_heads == 0),
  ):
    if not whole:
      raise UserError(f"model.llm.{value} must be a whole number for Hugging Face's 'gemma2'.")
  return fields | dict(
    attn_logit_softcapping=llm.attn_logits_softcap or None,
    final_logit_softcapping=llm.final_logits_softcap or None,
    layer_types=["full_attention"] * llm.depth,
    query_pre_attn_scalar=int(scalar),
    # For versions that do not know layer_types: a window that no sequence leaves.
    sliding_window=MAX_POSITIONS,
  )


def _square(name: str, size) -> int:
  if isinstance(size, int):
    return size
  if len(set(size)) != 1:
    _refuse(name, size, "a square")
  return size[0]


def _refuse(name: str, value, only):
  raise UserError(f"{name}={value!r} is not what pgjax's PaliGemma can be; it must be {only}.")
