"""transformers' PaliGemma and ours on the same weights: logits, loss, gradients, generated tokens.

Run by `make test-parity`, under transformers 5 and 4.57. transformers makes the weights, its folder
is read by pgjax.ckpt; or ours are exported by pgjax.convert and read by transformers.
"""

import os

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: make test-parity")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import torch
import transformers

from pgjax import cli, convert
from pgjax.checkpoints import source as source_lib
from pgjax.data import tokenizer
from pgjax.distributed import mesh as mesh_lib
from pgjax.formats import lazy_array
from pgjax.huggingface import names as hf_names
from pgjax.inference import decode
from pgjax.layers import cross_entropy
from pgjax.models import paligemma
from pgjax.params import tree as param_tree
from pgjax.training import step as step_lib

pytestmark = pytest.mark.parity

ROWS, PREFIX, TEXT, PATCHES, RES = 4, 6, 11, 9, 42
VOCAB, IMAGE_TOKEN, NEW = 1856, 1792, 8
MODELS = {
  "gemma": dict(model_type="gemma", num_key_value_heads=1),
  "gemma, many key heads": dict(model_type="gemma", num_key_value_heads=4),
  "gemma2": dict(model_type="gemma2", num_key_value_heads=2, query_pre_attn_scalar=16),
  "gemma2, scaled like 27b": dict(
    model_type="gemma2", num_key_value_heads=2, query_pre_attn_scalar=12, head_dim=16
  ),
  "gemma2, no final cap, odd sizes": dict(
    model_type="gemma2",
    num_key_value_heads=3,
    num_attention_heads=6,
    head_dim=10,
    query_pre_attn_scalar=10,
    hidden_size=60,
    intermediate_size=70,
    final_logit_softcapping=None,
  ),
}


def hf_model(text, seed=0):
  """transformers' model with these text sizes and random weights that leave nothing unused."""
  text = (
    dict(
      vocab_size=VOCAB,
      hidden_size=48,
      intermediate_size=96,
      num_hidden_layers=3,
      num_attention_heads=4,
      head_dim=16,
      hidden_activation="gelu_pytorch_tanh",
    )
    | text
  )
  if transformers.__version__ < "5":  # Its PaliGemma never caps the final logits.
    text |= dict(final_logit_softcapping=None)
  vision = dict(
    model_type="siglip_vision_model",
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=RES,
    patch_size=14,
    vision_use_head=False,
  )
  width = text["hidden_size"]
  config = transformers.PaliGemmaConfig(
    vision_config=vision,
    text_config=text,
    image_token_index=IMAGE_TOKEN,
    projection_dim=width,
    hidden_size=width,
  )
  model = transformers.PaliGemmaForConditionalGeneration(config)
  model.set_attn_implementation("eager")
  torch.manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.15 * torch.randn(parameter.shape))
  return model.float().train()  # No dropout; 4.57 knows no suffix when it evaluates.


@pytest.fixture(params=MODELS, scope="module")
def both(request, tmp_path_factory):
  """(transformers' model, ours, our parameters from its folder)."""
  theirs = hf_model(MODELS[request.param])
  folder = tmp_path_factory.mktemp("hf")
  theirs.save_pretrained(folder)
  source = source_lib.open_source(str(folder))
  values = {name: leaf.whole() for name, leaf in source.leaves.items()}
  return theirs, paligemma.Model(**source.model), values


@pytest.fixture(scope="module")
def batch():
  """Prefixes of 2 to 6 tokens, suffixes of 2 to 5, padding behind."""
  rng = np.random.default_rng(1)
  prefix = rng.integers(2, PREFIX + 1, (ROWS, 1))
  end = prefix + rng.integers(2, TEXT - PREFIX + 1, (ROWS, 1))
  end[0] = TEXT + 1  # No padding.
  at = np.arange(TEXT + 1)
  text = np.where(at < end, rng.integers(4, IMAGE_TOKEN, (ROWS, TEXT + 1)), 0).astype(np.int32)
  image = rng.uniform(-1, 1, (ROWS, RES, RES, 3)).astype(np.float32)
  learned = (at >= prefix) & (at < end)
  masks = dict(mask_ar=(at >= prefix).astype(np.int32), mask_loss=learned.astype(np.int32))
  return dict(image=image, text=text, **masks), at < end


def forward(model, batch, real, rows):
  """transformers' output for some rows, prefix-LM masks given by token_type_ids."""
  text = torch.tensor(batch["text"][rows], dtype=torch.long)
  images = torch.full((len(text), PATCHES), IMAGE_TOKEN)
  zeros = torch.zeros_like(images)
  learned = torch.tensor(batch["mask_loss"][rows], dtype=torch.bool)
  return model(
    input_ids=torch.cat([images, text], 1),
    pixel_values=torch.tensor(batch["image"][rows]).permute(0, 3, 1, 2),
    attention_mask=torch.cat([zeros + 1, torch.tensor(real[rows], dtype=torch.long)], 1),
    token_type_ids=torch.cat([zeros, torch.tensor(batch["mask_ar"][rows], dtype=torch.long)], 1),
    labels=torch.cat([zeros - 100, torch.where(learned, text, -100)], 1),
  )


def test_logits_of_prefix_and_suffix_and_with_padding(both, batch):
  theirs, model, values = both
  batch, real = batch
  with torch.no_grad():
    expected = forward(theirs, batch, real, slice(None)).logits[:, PATCHES:].numpy()
  variables = {"params": param_tree.unflatten({n: jnp.asarray(a) for n, a in values.items()})}
  ours, _ = model.apply(
    variables, *(jnp.asarray(batch[name]) for name in ("image", "text", "mask_ar"))
  )
  difference = np.abs(np.asarray(ours) - expected)[real]
  assert difference.max() <= 1e-4 * np.abs(expected[real]).max()


def test_loss_and_gradients(both, batch):
  """Ours is the mean over examples of each one's mean, so theirs is called example by example."""
  theirs, model, values = both
  batch, real = batch
  theirs.zero_grad()
  loss = sum(forward(theirs, batch, real, slice(i, i + 1)).loss for i in range(ROWS)) / ROWS
  loss.backward()
  grads = {
    name: lazy_array.of_array(p.grad.numpy())
    for name, p in theirs.named_parameters()
    if p.grad is not None
  }
  expected = hf_names.from_hf(grads, {name: a.shape for name, a in values.items()})
  options = cross_entropy.LossOptions(softcap=model.llm_config.final_logits_softcap)
  arrays = {name: jnp.asarray(a) for name, a in values.items()}
  ours, our_loss = jax.jit(
    lambda trained, batch: step_lib.gradients(
      trained, {}, batch, jax.random.key(0), model=model, options=options, examples=ROWS
    )
  )(arrays, batch)
  np.testing.assert_allclose(our_loss, loss.item(), rtol=1e-5)
  assert ours.keys() == expected.keys()
  expected = {name: leaf.whole() for name, leaf in expected.items()}
  largest = max(np.abs(wanted).max() for wanted in expected.values())
  for name, gradient in ours.items():
    # A bias of the keys changes no softmax: its gradient is only rounding.
    size = largest if name.endswith("key/bias") else np.abs(expected[name]).max()
    assert size > 0, name
    assert np.abs(gradient - expected[name]).max() <= 1e-4 * size, name


@pytest.fixture(params=["gemma", "gemma2"])
def exported(request, tmp_path):
  """(folder that pgjax.convert wrote, our model, its parameters)."""
  theirs = hf_model(MODELS[request.param], seed=2)
  theirs.save_pretrained(tmp_path / "theirs")
  flags = [f"--src={tmp_path}/theirs", f"--dst={tmp_path}/o", "--to=orbax"]
  flags += [f"--tokenizer={tokenizer.TINY}"]
  assert convert.main(cli.parse(["convert", *flags], convert.FLAGS, "none")) == 0
  flags = [f"--src={tmp_path}/o", f"--dst={tmp_path}/hf", "--to=hf"]
  assert convert.main(cli.parse(["convert", *flags], convert.FLAGS, "none")) == 0
  source = source_lib.open_source(str(tmp_path / "o"))
  values = {name: leaf.whole() for name, leaf in source.leaves.items()}
  return tmp_path / "hf", paligemma.Model(**source.model), values


def test_transformers_generates_our_tokens(exported):
  """From the exported folder, with its own processor; greedy, and three beams run at all."""
  folder, model, values = exported
  theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    folder, attn_implementation="eager", dtype=torch.float32
  ).eval()
  processor = transformers.AutoProcessor.from_pretrained(folder)
  named = tokenizer.load("tiny")
  prompts = ["what color is the shape?", "is there a circle?", "<loc0012> detect x", "é"]
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (len(prompts), RES, RES, 3), dtype=np.uint8)
  inputs = [
    processor(text="<image>" + prompt, images=image, return_tensors="pt")
    for prompt, image in zip(prompts, pixels, strict=True)
  ]
  tokens = [[named.bos, *named.encode(p), named.newline] for p in prompts]
  for one, ids in zip(inputs, tokens, strict=True):
    assert one["input_ids"][0].tolist() == PATCHES * [IMAGE_TOKEN] + ids
  if transformers.__version__.startswith("5"):  # 4.57 sees the whole prompt by itself.
    for one in inputs:
      one.setdefault("token_type_ids", torch.zeros_like(one["input_ids"]))
  length = dict(max_new_tokens=NEW, do_sample=False)
  expected = [theirs.generate(**one, **length)[0, one["input_ids"].shape[1] :] for one in inputs]
  beams = [theirs.generate(**one, **length, num_beams=3) for one in inputs]
  assert all(b.shape[1] > one["input_ids"].shape[1] for b, one in zip(beams, inputs, strict=True))

  T = max(map(len, tokens))
  text = np.array([ids + [0] * (T - len(ids)) for ids in tokens], np.int32)
  batch = dict(
    image=np.stack([one["pixel_values"][0].permute(1, 2, 0).numpy() for one in inputs]),
    text=text,
    mask_ar=np.zeros_like(text),
    mask_input=np.arange(T) < np.array([[len(ids)] for ids in tokens]),
    _mask=np.ones(len(tokens), bool),
  )
  mesh = mesh_lib.make_mesh([("data", -1)], jax.devices()[:1])
  tree = param_tree.unflatten(values)
  places = jax.tree.map(lambda _: mesh_lib.replicated(mesh), tree)
  run = decode.jitted(model, mesh, places, max_decode_len=NEW)
  ours, _ = run(tree, batch)
  for row, wanted in zip(np.asarray(ours), expected, strict=True):
    assert row[: len(wanted)].tolist() == wanted.tolist()


def test_transformers_loads_every_tensor(exported):
  """Nothing is left at its random initialisation, nothing is unused."""
  folder, _, _ = exported
  theirs, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    folder, output_loading_info=True, dtype=torch.float32
  )
  assert not info["unexpected_keys"]
  assert not [key for key in info["missing_keys"] if "lm_head" not in key]
  assert not info["mismatched_keys"]
  head = theirs.get_output_embeddings().weight
  assert torch.equal(head, theirs.get_input_embeddings().weight)
