"""Adapters here and in PEFT on the same weights: the same logits, whichever side wrote them."""

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
from pgjax.formats import lazy_array
from pgjax.huggingface import peft as peft_lib
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
