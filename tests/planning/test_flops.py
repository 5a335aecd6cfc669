"""Model FLOPs of a step equal the published figures; frozen parameters have no gradient FLOPs."""

import functools

import jax
import pytest
import tiny

from pgjax.models import paligemma
from pgjax.params import names as param_names, of_model
from pgjax.planning import flops

# A multiply-add of each part of PaliGemma 2 3B at 224 px with 128 tokens, in 1e9: products with
# weights, and attention.
PATCHES, TEXT = 256, 128
S = PATCHES + TEXT
VISION = PATCHES * 27 * (4 * 1152**2 + 2 * 1152 * 4304)
VISION_SCORES = 2 * 27 * PATCHES**2 * 1152
EMBEDDING, CONNECTOR = PATCHES * 3 * 14**2 * 1152, PATCHES * 1152 * 2304
ATTENTION = S * 26 * 2304 * 256 * (2 * 8 + 2 * 4)
MLP = S * 26 * 3 * 2304 * 9216
DECODER_SCORES = 2 * 26 * S**2 * 8 * 256
LOGITS = TEXT * 257_152 * 2304
ALL = sum((VISION, VISION_SCORES, EMBEDDING, CONNECTOR, ATTENTION, MLP, DECODER_SCORES, LOGITS))
DECODER = ATTENTION + MLP + DECODER_SCORES


def model(variant="gemma2_2b"):
  return paligemma.Model(img=dict(variant="So400m/14"), llm=dict(variant=variant))


def abstract(model, res):
  """{name: array without numbers}."""
  shapes = of_model.param_shapes(model, res)
  return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}


@functools.cache
def shapes(variant):
  return abstract(model(variant), 224)


def of(variant, trains, *, res=224, text_len=128, factors=None):
  """FLOPs where the pattern trains."""
  leaves = shapes(variant)
  matches = param_names.first_match([trains], leaves)
  trained = {name for name, match in matches.items() if match == 0} | set(factors or ())
  leaves |= factors or {}
  return flops.train_flops(model(variant), leaves, trained, res=res, text_len=text_len)


@pytest.mark.parametrize(
  ("variant", "res", "text_len", "expected"),
  [
    ("gemma_2b", 224, 128, 5.70e12),
    ("gemma2_2b", 224, 128, 5.87e12),
    ("gemma2_2b", 448, 512, 24.92e12),
    ("gemma2_2b", 896, 512, 87.80e12),
    ("gemma2_9b", 224, 128, 20.85e12),
    ("gemma2_27b", 224, 128, 61.92e12),
  ],
)
def test_full_training_costs_the_published_formula(variant, res, text_len, expected):
  assert of(variant, ".*", res=res, text_len=text_len) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
  ("trains", "twice", "thrice"),
  [
    # Which products have a gradient of their input, and which of their weight too; attention's own
    # products have two factors, and so are in both.
    (".*", 0, ALL),
    ("llm/.*", 0, DECODER + LOGITS),
    ("llm/layers/.*", LOGITS, DECODER),
    ("llm/layers/attn/.*", MLP + LOGITS, ATTENTION + DECODER_SCORES),
    ("llm/embedder/.*", ATTENTION + MLP, DECODER_SCORES + LOGITS),
    ("llm/final_norm/.*", LOGITS, 0),
    ("img/head/.*", ATTENTION + MLP + LOGITS, CONNECTOR + DECODER_SCORES),
    (
      "img/.*",
      ATTENTION + MLP + LOGITS,
      EMBEDDING + VISION + VISION_SCORES + CONNECTOR + DECODER_SCORES,
    ),
    ("none", 0, 0),
  ],
)
def test_frozen_parameters_have_no_gradient_flops(trains, twice, thrice):
  assert of("gemma2_2b", trains) == 2 * (ALL + twice + 2 * thrice)


def test_lora_costs_its_factors_and_no_gradient_of_the_base():
  rank = 8
  factors = {
    "lora/llm/layers/mlp/linear/a": jax.ShapeDtypeStruct((26, 9216, rank), "float32"),
    "lora/llm/layers/mlp/linear/b": jax.ShapeDtypeStruct((26, rank, 2304), "float32"),
  }
  products = S * 26 * rank * (9216 + 2304)
  expected = 2 * (ALL + ATTENTION + MLP + 2 * DECODER_SCORES + LOGITS + 3 * products)
  assert of("gemma2_2b", "none", factors=factors) == expected
  assert expected < 0.72 * of("gemma2_2b", ".*")


def test_flops_without_attention_are_linear_in_images_and_text():
  """Without attention, whose cost is quadratic: twice the images and text cost twice as much."""
  model = tiny.model()
  leaves = abstract(model, tiny.RES)
  count = lambda **sizes: flops.train_flops(model, leaves, set(leaves), res=16, **sizes)  # noqa: E731
  scores = 3 * 4 * 2 * 12**2 * 4 * 16
  once, twice = count(text_len=8), count(text_len=16, num_images=2)
  assert twice - 4 * scores == pytest.approx(2 * (once - scores))
