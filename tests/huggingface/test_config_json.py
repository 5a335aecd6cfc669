"""config.json in both directions; what transformers makes of it is in tests/parity."""

import copy
import dataclasses
import json

import pytest

from pgjax.config import schema
from pgjax.errors import UserError
from pgjax.huggingface import config_json as hf_config
from pgjax.models import gemma, siglip

# Field for field what google/paligemma-3b-pt-224 and google/paligemma2-* have on the hub.
HUB_1 = {
  "architectures": ["PaliGemmaForConditionalGeneration"],
  "bos_token_id": 2,
  "eos_token_id": 1,
  "hidden_size": 2048,
  "ignore_index": -100,
  "image_token_index": 257152,
  "model_type": "paligemma",
  "pad_token_id": 0,
  "projection_dim": 2048,
  "text_config": {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_image_tokens": 256,
    "num_key_value_heads": 1,
    "torch_dtype": "float32",
    "vocab_size": 257216,
  },
  "torch_dtype": "float32",
  "transformers_version": "4.41.0.dev0",
  "vision_config": {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_image_tokens": 256,
    "patch_size": 14,
    "projection_dim": 2048,
    "projector_hidden_act": "gelu_fast",
    "vision_use_head": False,
  },
}
HUB_2 = HUB_1 | {
  "projection_dim": 2304,
  "text_config": {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 257216,
  },
}
SIZES = dict(width=48, depth=3, mlp_dim=80, num_heads=6, num_kv_heads=2, head_dim=16)
ODD_IMG = dict(variant="odd", width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=(8, 8))
GEMMA_2 = dict(post_norms=True, attn_logits_softcap=20.0)


def with_text(config, **changes):
  return config | {"text_config": config["text_config"] | changes}


def with_vision(config, **changes):
  return config | {"vision_config": config["vision_config"] | changes}


def test_the_hub_s_short_file_of_paligemma_1_is_the_3b():
  fields = hf_config.model_fields(HUB_1)
  assert fields == dict(img=dict(variant="So400m/14"), llm=dict(variant="gemma_2b"))
  assert hf_config.res(HUB_1) == 224
  assert (hf_config.image_token_id(HUB_1), hf_config.vocab_size(HUB_1)) == (257_152, 257_216)


def test_the_hub_s_paligemma_2_has_its_final_softcap_and_a_note_on_the_window():
  fields = hf_config.model_fields(HUB_2)
  assert fields["llm"] == dict(variant="gemma2_2b")
  assert gemma.get(**fields["llm"]).final_logits_softcap == 30.0
  (note,) = hf_config.notes(HUB_2)
  assert "4,096" in note
  assert hf_config.notes(HUB_1) == []


def test_null_softcaps_are_off_and_absent_ones_are_transformers_defaults():
  off = with_text(HUB_2, final_logit_softcapping=None, attn_logit_softcapping=None)
  expected = dict(variant="gemma2_2b", attn_logits_softcap=0.0, final_logits_softcap=0.0)
  assert hf_config.model_fields(off)["llm"] == expected
  absent = copy.deepcopy(HUB_2)
  del absent["text_config"]["final_logit_softcapping"]
  del absent["text_config"]["attn_logit_softcapping"]
  assert hf_config.model_fields(absent) == hf_config.model_fields(HUB_2)


def test_the_27b_scales_queries_by_width_over_heads():
  sizes = dict(
    hidden_size=4608,
    num_hidden_layers=46,
    intermediate_size=36_864,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=144,
  )
  config = with_text(HUB_2, **sizes) | {"projection_dim": 4608}
  assert hf_config.model_fields(config)["llm"] == dict(variant="gemma2_27b")
  config = with_text(config, query_pre_attn_scalar=128)
  assert hf_config.model_fields(config)["llm"]["query_pre_attn_norm"] == "rsqrt_head_dim"
  config = with_text(config, query_pre_attn_scalar=100)
  llm = gemma.get(**hf_config.model_fields(config)["llm"])
  assert (llm.query_pre_attn_norm, llm.query_scalar) == (100, 100.0)


def test_an_image_token_inside_the_vocabulary_removes_no_rows():
  config = with_text(HUB_1, vocab_size=300) | {"image_token_index": 99}
  assert hf_config.model_fields(config)["llm"]["vocab_size"] == 300


def architecture(fields):
  """What of a model's fields a checkpoint's meaning depends on."""
  img = dataclasses.asdict(siglip.get(**fields["img"]))
  return img, dataclasses.asdict(gemma.get(**fields["llm"]))


@pytest.mark.parametrize(
  "fields",
  [
    *(dict(img=dict(variant="So400m/14"), llm=dict(variant=name)) for name in gemma.VARIANTS),
    *(
      dict(img=dict(variant=name), llm=dict(variant="gemma2_2b", final_logits_softcap=0.0))
      for name in ("Ti/16", "S/8", "B/32", "L/16", "So400m/16")
    ),
    dict(img=ODD_IMG, llm=dict(variant="odd", vocab_size=320, norm_eps=1e-5, **SIZES)),
    dict(img=ODD_IMG, llm=dict(variant="odd", vocab_size=1792, **SIZES, **GEMMA_2)),
    dict(
      img=ODD_IMG,
      llm=dict(variant="odd", query_pre_attn_norm="rsqrt_emb_per_head", **SIZES, **GEMMA_2),
    ),
    dict(img=ODD_IMG, llm=dict(variant="odd", query_pre_attn_norm=20, **SIZES, **GEMMA_2)),
    dict(img=ODD_IMG, llm=dict(variant="gemma2_9b", attn_logits_softcap=0.0)),
  ],
)
def test_a_model_round_trips_through_config_json(fields):
  written = hf_config.config_json(fields, res=448 if fields["img"] is not ODD_IMG else 40)
  again = json.loads(json.dumps(written))
  read = hf_config.model_fields(again)
  assert architecture(read) == architecture(fields)
  assert hf_config.model_fields(hf_config.config_json(read, res=hf_config.res(again))) == read
  assert hf_config.notes(again) == []


def test_config_json_names_variants_again():
  fields = dict(img=dict(variant="So400m/14"), llm=dict(variant="gemma2_9b"))
  assert hf_config.model_fields(hf_config.config_json(fields, res=224)) == fields


def test_config_json_equals_the_hub_s_file():
  fields = dict(img=dict(variant="So400m/14"), llm=dict(variant="gemma_2b"))
  ours = hf_config.config_json(fields, res=224, dtype="float32")
  for section, theirs in (("text_config", HUB_1), ("vision_config", HUB_1)):
    assert theirs[section].items() <= ours[section].items()
  same = {k: v for k, v in HUB_1.items() if not k.endswith(("_config", "transformers_version"))}
  assert same.items() <= ours.items()


def test_the_final_softcap_is_written_as_the_model_was_trained():
  fields = dict(
    img=dict(variant="So400m/14"), llm=dict(variant="gemma2_2b", final_logits_softcap=0.0)
  )
  text = hf_config.config_json(fields, res=224)["text_config"]
  assert (text["final_logit_softcapping"], text["attn_logit_softcapping"]) == (None, 50.0)
  assert text["layer_types"] == 26 * ["full_attention"]


@pytest.mark.parametrize(
  ("config", "field"),
  [
    (HUB_1 | {"model_type": "llava"}, "model_type='llava'"),
    (HUB_1 | {"projection_dim": 2304}, "projection_dim=2304"),
    ({k: v for k, v in HUB_1.items() if k != "text_config"}, "text_config is missing"),
    (with_text(HUB_1, model_type="gemma3_text"), "text_config.model_type='gemma3_text'"),
    (with_text(HUB_1, hidden_activation="relu"), "hidden_activation='relu'"),
    (with_text(HUB_1, hidden_act="silu"), "hidden_activation='silu'"),
    (with_text(HUB_2, hidden_activation="gelu"), "hidden_activation='gelu'"),
    (with_text(HUB_1, attention_bias=True), "attention_bias=True"),
    (with_text(HUB_1, tie_word_embeddings=False), "tie_word_embeddings=False"),
    (with_text(HUB_1, use_bidirectional_attention=False), "use_bidirectional_attention=False"),
    (with_text(HUB_1, rope_theta=1e6), "rope_theta=1000000.0"),
    (with_text(HUB_1, rope_parameters={"rope_theta": 2.0}), "rope_parameters.rope_theta=2.0"),
    (with_text(HUB_1, rope_scaling={"type": "linear", "factor": 2}), "rope_type='linear'"),
    (with_text(HUB_2, sliding_window=512), "sliding_window=512"),
    (with_vision(HUB_1, hidden_act="quick_gelu"), "vision_config.hidden_act='quick_gelu'"),
    (with_vision(HUB_1, layer_norm_eps=1e-5), "layer_norm_eps=1e-05"),
    (with_vision(HUB_1, num_channels=1), "num_channels=1"),
    (with_vision(HUB_1, patch_size=[14, 7]), r"patch_size=\[14, 7\]"),
  ],
)
def test_unsupported_fields_are_named(config, field):
  with pytest.raises(UserError, match=field):
    hf_config.model_fields(config)


def test_gelu_in_the_first_gemma_files_is_the_tanh_form():
  config = with_text(HUB_1, hidden_act="gelu", hidden_activation=None)
  assert hf_config.model_fields(config) == hf_config.model_fields(HUB_1)


def test_a_short_window_that_no_layer_uses_is_ignored():
  config = with_text(HUB_2, sliding_window=512, layer_types=26 * ["full_attention"])
  assert hf_config.model_fields(config) == hf_config.model_fields(HUB_2)


@pytest.mark.parametrize(
  ("llm", "arguments", "message"),
  [
    (dict(final_logits_softcap=30.0), {}, "final_logits_softcap=30: without post_norms"),
    (dict(query_pre_attn_norm="rsqrt_emb_per_head"), {}, "query_pre_attn_norm=8"),
    (
      dict(GEMMA_2, query_pre_attn_norm=20.5),
      {},
      "query_pre_attn_norm=20.5 must be a whole number",
    ),
    (dict(GEMMA_2, width=47), {}, "width=47.*num_heads=6"),
    ({}, dict(res=39), "res=39 is no multiple of the patch size 8"),
    ({}, dict(dtype="int8"), "dtype='int8' is none of"),
  ],
)
def test_what_transformers_cannot_express_is_named(llm, arguments, message):
  fields = dict(img=ODD_IMG, llm=dict(variant="odd", **{**SIZES, "vocab_size": 320, **llm}))
  with pytest.raises(UserError, match=message):
    hf_config.config_json(fields, **{"res": 40, **arguments})


def test_an_unknown_query_norm_is_refused_by_the_model():
  with pytest.raises(UserError, match="query_pre_attn_norm='rsqrt' must be"):
    gemma.get("gemma_2b", query_pre_attn_norm="rsqrt")


def test_generation_is_greedy_and_ends_at_eos():
  config = hf_config.generation_config_json(max_new_tokens=64)
  assert (config["eos_token_id"], config["do_sample"], config["max_new_tokens"]) == (1, False, 64)
  assert "max_new_tokens" not in hf_config.generation_config_json()


def test_a_config_may_set_the_query_norm_by_name_or_number():
  accepts = schema.LLM["query_pre_attn_norm"].accepts
  assert [accepts(v) for v in ("rsqrt_head_dim", 144, 20.5)] == 3 * [True]
  assert [accepts(v) for v in ("rsqrt", 0, -1, True)] == 4 * [False]
