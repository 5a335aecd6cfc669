"""The fields of a Hugging Face config.json that are read, and their types.

Null means the default, except where config_json.py gives it a meaning. Other fields are ignored.
"""

import pathlib
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from pgjax.formats import typed_json
from pgjax.formats.typed_json import Count, Size

_Layers = Annotated[int, Meta(ge=1, le=1024)]
_Positive = Annotated[int, Meta(gt=0, le=10**6)] | Annotated[float, Meta(gt=0, le=1e6)]
_Cap = Annotated[int, Meta(ge=0, le=10**6)] | Annotated[float, Meta(ge=0, le=1e6)]
_Square = Annotated[int, Meta(ge=1, le=2**14)] | Annotated[list[Size], Meta(min_length=1)]


class _Tower(TypedDict, total=False):
  model_type: str | None
  hidden_size: Size | None
  intermediate_size: Size | None
  num_hidden_layers: _Layers | None
  num_attention_heads: Size | None
  hidden_act: str | None


class _Vision(_Tower, total=False):
  image_size: _Square | None
  patch_size: _Square | None


class _Text(_Tower, total=False):
  vocab_size: Size | None
  num_key_value_heads: Size | None
  head_dim: Size | None
  hidden_activation: str | None
  rms_norm_eps: _Positive | None
  query_pre_attn_scalar: _Positive | None
  sliding_window: Count | None
  final_logit_softcapping: _Cap | None
  attn_logit_softcapping: _Cap | None
  layer_types: list[str] | None
  rope_scaling: dict[str, Any] | None
  rope_parameters: dict[str, Any] | None


class Config(TypedDict, total=False):
  """The fields of config.json."""

  model_type: str | None
  image_token_index: Count | None
  image_token_id: Count | None
  projection_dim: Size | None
  vision_config: _Vision | None
  text_config: _Text | None


def read(path: pathlib.Path) -> dict[str, Any]:
  """A config.json with checked types of the fields above."""
  config = typed_json.read(path, dict[str, Any])
  typed_json.check(config, Config, path)
  return config
