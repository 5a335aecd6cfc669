"""transformers makes our model of our config.json, and we read what it writes."""

import dataclasses
import json
import os

import pytest

pytest.importorskip("torch", reason="torch is not installed: make test-parity")
pytest.importorskip("transformers", reason="transformers is not installed: make test-parity")
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

from pgjax.huggingface import config_json as hf_config
from pgjax.models import gemma, siglip

pytestmark = pytest.mark.parity

IMG = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=8)
LLM = dict(width=48, depth=3, mlp_dim=80, num_heads=6, num_kv_heads=2, head_dim=16, vocab_size=320)
GEMMA_2 = dict(post_norms=True, attn_logits_softcap=20.0, final_logits_softcap=7.0)
MODELS = {
  "gemma": dict(img=IMG, llm=dict(variant="odd", norm_eps=1e-5, **LLM)),
  "gemma2": dict(img=IMG, llm=dict(variant="odd", query_pre_attn_norm=20, **LLM, **GEMMA_2)),
  "gemma2 without caps": dict(img=IMG, llm=dict(variant="odd", post_norms=True, **LLM)),
}


def written(folder, fields, **arguments):
  (folder / "config.json").write_text(json.dumps(hf_config.config_json(fields, **arguments)))
  (folder / "generation_config.json").write_text(json.dumps(hf_config.generation_config_json(64)))
  return transformers.AutoConfig.from_pretrained(folder)


def architecture(fields):
  img, llm = siglip.get(**fields["img"]), gemma.get(**fields["llm"])
  return dataclasses.asdict(img), dataclasses.asdict(llm)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_our_config_has_our_sizes_and_round_trips(name, tmp_path):
  fields = MODELS[name]
  config = written(tmp_path, fields, res=40, dtype="float32")
  model = transformers.PaliGemmaForConditionalGeneration(config)
  model.save_pretrained(tmp_path / "again")
  again = json.loads((tmp_path / "again/config.json").read_text())
  assert architecture(hf_config.model_fields(again)) == architecture(fields)
  assert (hf_config.res(again), hf_config.image_token_id(again), hf_config.vocab_size(again)) == (
    40,
    320,
    384,
  )
  shapes = {tuple(p.shape) for p in model.parameters()}
  assert {(384, 48), (96, 48), (80, 48), (48, 24), (24, 3, 8, 8), (25, 24)} <= shapes
  loaded = transformers.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "again")
  assert loaded.config.text_config.num_hidden_layers == 3


@pytest.mark.parametrize("variant", gemma.VARIANTS)
def test_named_variants_round_trip_through_transformers(variant, tmp_path):
  fields = dict(img=dict(variant="So400m/14"), llm=dict(variant=variant))
  config = written(tmp_path, fields, res=224)
  config.save_pretrained(tmp_path / "again")
  again = json.loads((tmp_path / "again/config.json").read_text())
  assert hf_config.model_fields(again) == fields
  assert hf_config.notes(again) == []


def test_the_softcaps_and_the_scale_are_the_model_s(tmp_path):
  text = written(tmp_path, MODELS["gemma2"], res=40).text_config
  assert (text.attn_logit_softcapping, text.final_logit_softcapping) == (20.0, 7.0)
  assert text.query_pre_attn_scalar == 20
  assert text.layer_types == 3 * ["full_attention"]
  text = written(tmp_path, MODELS["gemma2 without caps"], res=40).text_config
  assert (text.attn_logit_softcapping, text.final_logit_softcapping) == (None, None)


def test_our_defaults_are_transformers_own(tmp_path):
  """An empty config is the same model as in transformers."""
  for kind, make in (("gemma", transformers.GemmaConfig), ("gemma2", transformers.Gemma2Config)):
    short = {
      "model_type": "paligemma",
      "text_config": {"model_type": kind},
      "vision_config": {"model_type": "siglip_vision_model"},
      "projection_dim": make().hidden_size,
    }
    config = transformers.PaliGemmaConfig(**json.loads(json.dumps(short)))
    config.save_pretrained(tmp_path)
    full = json.loads((tmp_path / "config.json").read_text())
    assert hf_config.model_fields(short) == hf_config.model_fields(full)
    for read in (hf_config.res, hf_config.image_token_id, hf_config.vocab_size, hf_config.notes):
      assert read(short) == read(full)


def test_generation_stops_where_ours_does(tmp_path):
  written(tmp_path, MODELS["gemma"], res=40)
  generation = transformers.GenerationConfig.from_pretrained(tmp_path)
  assert (generation.eos_token_id, generation.max_new_tokens) == (1, 64)
  assert generation.do_sample is False
