"""Adapters here and in PEFT on the same weights: the same logits, whichever side wrote them."""

import json
import os
import warnings

import numpy as np
import pytest

pytest.importorskip("peft", reason="peft is not installed: make test-parity")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import ml_collections
import peft
import torch

from pgjax.checkpoints import source as source_lib
from pgjax.errors import UserError
from pgjax.formats import lazy_array
from pgjax.huggingface import peft as peft_lib
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import lazy, names as param_names, of_model, tree as param_tree
from tests.parity import test_hf_model

pytestmark = pytest.mark.parity
batch = test_hf_model.batch
PATCHES = test_hf_model.PATCHES
MIXED = [
  ("llm/layers/mlp/.*", "lora(rank=3, alpha=5)"),
  ("img/.*MultiHead.*kernel", "lora(rank=2, alpha=8)"),
  ("(llm|img)/.*", "lora(rank=4, alpha=8, dropout=0.1)"),
]
STABLE = [("llm/.*", "lora(rank=4, alpha=8, rslora=True)"), (".*", "freeze")]
CONNECTOR = [("img/head/.*", "train"), ("llm/.*", "lora(rank=4)"), (".*", "freeze")]
RULES = {"mixed": MIXED, "rslora": STABLE, "connector": CONNECTOR}


@pytest.fixture(params=["gemma", "gemma, many key heads", "gemma2"])
def base(request, tmp_path):
  """(transformers' model, ours, its weights as Leaves)."""
  theirs = test_hf_model.hf_model(test_hf_model.MODELS[request.param])
  theirs.save_pretrained(tmp_path / "base")
  source = source_lib.open_source(str(tmp_path / "base"))
  return theirs, paligemma.Model(**source.model), source.leaves


def logits_of(theirs, batch):
  batch, real = batch
  with torch.no_grad():
    output = test_hf_model.forward(theirs, batch, real, slice(None))
  return output.logits[:, PATCHES:].numpy()[real]


def our_logits(model, variables, batch):
  batch, real = batch
  inputs = (jnp.asarray(batch[name]) for name in ("image", "text", "mask_ar"))
  return np.asarray(jax.jit(model.apply)({"params": variables}, *inputs)[0])[real]


def leaves_of(model, patterns):
  config = dict(params=patterns, res=test_hf_model.RES, text_len=test_hf_model.TEXT, num_frames=0)
  return of_model.stored_params(model, ml_collections.ConfigDict(config))


def assert_close(ours, theirs, base):
  """And the adapter changes something."""
  size = np.abs(theirs).max()
  assert np.abs(theirs - base).max() > 0.1 * size
  assert np.abs(ours - theirs).max() <= 1e-4 * size


def without_dropout(adapted):
  """Otherwise as in training: transformers 4.57 knows no suffix when it evaluates."""
  adapted.train()
  for module in adapted.modules():
    if isinstance(module, torch.nn.Dropout):
      module.eval()
  return adapted


@pytest.mark.parametrize("rules", RULES)
def test_our_adapter_in_peft_gives_our_logits(base, batch, rules, tmp_path):
  theirs, model, weights = base
  before = logits_of(theirs, batch)
  leaves = leaves_of(model, RULES[rules])
  rng = np.random.default_rng(3)
  stored = {name: leaf.whole() for name, leaf in weights.items()}
  for name, leaf in param_tree.flatten(leaves.abstract()).items():
    if name.startswith(param_names.LORA):
      stored[name] = rng.normal(0, 0.2, leaf.shape).astype(np.float32)
  adapters, whole = {}, {}
  for name, rule in leaves.rules.items():
    if rule.kind == "train":
      stored[name] = 2 * stored[name]
      whole[name] = lazy_array.of_array(stored[name])
    elif rule.kind == "lora":
      a, b = (lazy_array.of_array(stored[f"{param_names.LORA}{name}/{factor}"]) for factor in "ab")
      adapters[name] = lazy.Adapter(a, b, rule)
  shapes = {name: leaf.shape for name, leaf in weights.items()}
  peft_lib.write(tmp_path / "a", peft_lib.Folder(adapters, whole, None), shapes)
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # PEFT warns that a tensor is missing or unused.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "a")
  expected = logits_of(without_dropout(adapted), batch)
  assert_close(our_logits(model, leaves.for_model(stored), batch), expected, before)


THEIRS = {
  "query and value": dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8),
  "all, with patterns": dict(
    target_modules="all-linear",
    r=4,
    lora_alpha=8,
    rank_pattern={"k_proj": 3, "layers.1.mlp.up_proj": 6},
    alpha_pattern={"down_proj": 5, "vision_tower.*fc1": 20},
  ),
  "rslora and a connector": dict(
    target_modules=r".*language_model.*_proj",
    r=4,
    lora_alpha=3,
    use_rslora=True,
    rank_pattern={"o_proj": 2},
    modules_to_save=["multi_modal_projector"],
  ),
  "DoRA": dict(target_modules=["q_proj", "v_proj", "out_proj"], r=4, lora_alpha=8, use_dora=True),
  "DoRA of all": dict(
    target_modules="all-linear",
    r=4,
    lora_alpha=8,
    use_dora=True,
    use_rslora=True,
    rank_pattern={"k_proj": 3},
    alpha_pattern={"down_proj": 5},
  ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_merged_adapter_of_peft_gives_its_logits(base, batch, name, tmp_path):
  theirs, model, weights = base
  before = logits_of(theirs, batch)
  adapted = peft.get_peft_model(theirs, peft.LoraConfig(**THEIRS[name]))
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in adapted.parameters():
      if parameter.requires_grad:
        parameter.copy_(0.2 * torch.randn(parameter.shape))
  adapted.save_pretrained(tmp_path / "a")
  expected = logits_of(without_dropout(adapted), batch)
  shapes = {name: leaf.shape for name, leaf in weights.items()}
  folder = peft_lib.read(tmp_path / "a", "a", shapes)
  merged = {n: lazy.merge_adapter(n, weights[n], a) for n, a in folder.adapters.items()}
  full = {n: leaf.whole() for n, leaf in ({**weights, **folder.whole} | merged).items()}
  assert_close(our_logits(model, param_tree.unflatten(full), batch), expected, before)


def with_nf4_of_bitsandbytes(model):
  """Each linear module but the head replaced by the numbers that bitsandbytes' codes mean."""
  functional = pytest.importorskip("bitsandbytes.functional")
  for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
      weight = module.weight.data
      packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
      weight.copy_(functional.dequantize_4bit(packed, state))
  return model


def test_an_adapter_on_our_nf4_base_means_the_same_on_bitsandbytes(base, batch, tmp_path):
  theirs, model, weights = base
  before = logits_of(theirs, batch)
  spec = 'lora(rank=4, alpha=8, base="nf4")'
  leaves = leaves_of(model, [("(llm|img)/.*", spec)])
  rng, stored, adapters = np.random.default_rng(3), {}, {}
  for name, rule in leaves.rules.items():
    parts = {"": weights[name]}
    if rule.kind == "lora":
      parts = lazy.encode(name, weights[name], leaves)
      shapes = lora.factor_shapes(param_names.matrix(name), weights[name].shape, rule.rank)
      factors = {f: rng.normal(0, 0.2, s).astype(np.float32) for f, s in shapes.items()}
      stored |= {f"{param_names.LORA}{name}/{f}": a for f, a in factors.items()}
      adapters[name] = lazy.Adapter(*map(lazy_array.of_array, factors.values()), rule)
    stored |= {f"{name}/{p}".removesuffix("/"): a.whole() for p, a in parts.items()}
  dtype = {n: a.dtype for n, a in param_tree.flatten(leaves.abstract()).items()}
  stored = {n: a.astype(dtype[n]) for n, a in stored.items()}
  exact = {n: weights[n].whole() for n in weights if leaves.rules[n].kind != "lora"}
  shapes = {name: leaf.shape for name, leaf in weights.items()}
  peft_lib.write(tmp_path / "a", peft_lib.Folder(adapters, {}, None), shapes)
  quantized = with_nf4_of_bitsandbytes(theirs)
  adapted = peft.PeftModel.from_pretrained(quantized, tmp_path / "a")
  expected = logits_of(without_dropout(adapted), batch)
  assert_close(our_logits(model, leaves.for_model(stored | exact), batch), expected, before)


def trained(adapted):
  """The PEFT model with random numbers in all that trains."""
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in adapted.parameters():
      if parameter.requires_grad:
        parameter.copy_(0.2 * torch.randn(parameter.shape))
  return adapted


OTHERS = {
  "a token table": (
    dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "trained embed_tokens as a whole",
  ),
  "the head": (dict(target_modules=["q_proj", "lm_head"]), r"lm_head"),
  "embeddings": (dict(target_modules=["q_proj", "embed_tokens"]), "embed_tokens"),
  "a convolution": (
    dict(target_modules=["q_proj", "patch_embedding"]),
    "the patch embedding, a convolution",
  ),
  "biases": (dict(target_modules=["q_proj"], bias="all"), "bias='all'"),
  "rows of tokens": (
    dict(target_modules=["q_proj"], trainable_token_indices=[3]),
    "trainable_token_indices",
  ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_peft_writes_and_we_do_not_add_is_refused_by_name(base, what, tmp_path):
  theirs, _, weights = base
  fields, message = OTHERS[what]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    adapted = trained(peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, **fields)))
    adapted.save_pretrained(tmp_path / "a")
  with pytest.raises(UserError, match=message):
    peft_lib.read(tmp_path / "a", "a", {name: leaf.shape for name, leaf in weights.items()})


OLD = "language_model.model.layers.1.self_attn.q_proj"
MIDDLE = "model.language_model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
  "named", [OLD, MIDDLE, f"base_model.model.{MIDDLE}", r"language_model\..*layers\.1\..*q_proj"]
)
def test_patterns_of_any_version_give_the_scale_of_the_right_one(base, batch, named, tmp_path):
  """PEFT itself ignores a pattern in the names of another version of transformers."""
  theirs, model, weights = base
  before = logits_of(theirs, batch)
  fields = dict(target_modules=["q_proj", "fc1"], r=4, lora_alpha=8)
  fields |= dict(alpha_pattern={MIDDLE: 80}, rank_pattern={MIDDLE: 3})
  adapted = trained(peft.get_peft_model(theirs, peft.LoraConfig(**fields)))
  adapted.save_pretrained(tmp_path / "a")
  expected = logits_of(without_dropout(adapted), batch)
  config = tmp_path / "a" / peft_lib.CONFIG
  text = json.loads(config.read_text())
  text |= dict(alpha_pattern={named: 80}, rank_pattern={named: 3})
  config.write_text(json.dumps(text))
  folder = peft_lib.read(tmp_path / "a", "a", {n: leaf.shape for n, leaf in weights.items()})
  merged = {n: lazy.merge_adapter(n, weights[n], a) for n, a in folder.adapters.items()}
  full = {n: leaf.whole() for n, leaf in (weights | merged).items()}
  assert_close(our_logits(model, param_tree.unflatten(full), batch), expected, before)
