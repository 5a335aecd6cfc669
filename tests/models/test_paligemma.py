"""The whole model: its parameters, its attention mask, and the mistakes it reports."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pgjax.errors import UserError
from pgjax.layers import remat
from pgjax.models import gemma, paligemma, siglip
from pgjax.params import of_model, tree as param_tree

# A letter is a size: L layers, D width, F hidden size, N heads, K key heads, H head size, V
# vocabulary; l d f n h are the image tower's, P patches, p patch size; digits are sizes.
IMG_SHAPES = {
  "Transformer/encoder_norm/bias": "d",
  "Transformer/encoder_norm/scale": "d",
  "Transformer/encoderblock/LayerNorm_0/bias": "ld",
  "Transformer/encoderblock/LayerNorm_0/scale": "ld",
  "Transformer/encoderblock/LayerNorm_1/bias": "ld",
  "Transformer/encoderblock/LayerNorm_1/scale": "ld",
  "Transformer/encoderblock/MlpBlock_0/Dense_0/bias": "lf",
  "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": "ldf",
  "Transformer/encoderblock/MlpBlock_0/Dense_1/bias": "ld",
  "Transformer/encoderblock/MlpBlock_0/Dense_1/kernel": "lfd",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias": "lnh",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel": "ldnh",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/out/bias": "ld",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": "lnhd",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias": "lnh",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": "ldnh",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/value/bias": "lnh",
  "Transformer/encoderblock/MultiHeadDotProductAttention_0/value/kernel": "ldnh",
  "embedding/bias": "d",
  "embedding/kernel": "pp3d",
  "head/bias": "D",
  "head/kernel": "dD",
  "pos_embedding": "1Pd",
}
LLM_SHAPES = {
  "embedder/input_embedding": "VD",
  "final_norm/scale": "D",
  "layers/attn/attn_vec_einsum/w": "LNHD",
  "layers/attn/kv_einsum/w": "L2KDH",
  "layers/attn/q_einsum/w": "LNDH",
  "layers/mlp/gating_einsum": "L2DF",
  "layers/mlp/linear": "LFD",
  "layers/pre_attention_norm/scale": "LD",
  "layers/pre_ffw_norm/scale": "LD",
}
POST_NORMS = {f"layers/post_{name}_norm/scale": "LD" for name in ("attention", "ffw")}
SO400M = dict(l=27, d=1152, f=4304, n=16, h=72, p=14, V=257_152)
VARIANTS = {  # Sizes, and the number of parameters at 224, 448 and 896 pixels.
  "gemma_2b": (
    dict(L=18, D=2048, F=16_384, N=8, K=1, H=256),
    (2_923_335_408, 2_924_220_144, 2_927_759_088),
  ),
  "gemma2_2b": (
    dict(L=26, D=2304, F=9216, N=8, K=4, H=256),
    (3_032_094_960, 3_032_979_696, 3_036_518_640),
  ),
  "gemma2_9b": (
    dict(L=42, D=3584, F=14_336, N=16, K=8, H=256),
    (9_662_409_456, 9_663_294_192, 9_666_833_136),
  ),
  "gemma2_27b": (
    dict(L=46, D=4608, F=36_864, N=32, K=16, H=128),
    (27_650_192_112, 27_651_076_848, 27_654_615_792),
  ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_names_shapes_and_counts(variant):
  sizes, totals = VARIANTS[variant]
  letters = {f"img/{name}": shape for name, shape in IMG_SHAPES.items()}
  texts = LLM_SHAPES | (POST_NORMS if variant.startswith("gemma2") else {})
  letters |= {f"llm/{name}": shape for name, shape in texts.items()}
  model = paligemma.Model(img=dict(variant="So400m/14"), llm=dict(variant=variant))
  for res, total in zip((224, 448, 896), totals, strict=True):
    size = SO400M | sizes | dict(P=(res // 14) ** 2)
    shapes = of_model.param_shapes(model, res)
    assert shapes == {
      name: tuple(size.get(c) or int(c) for c in shape) for name, shape in letters.items()
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == total


@pytest.fixture(scope="module")
def values():
  return tiny.parameters(tiny.model())


@pytest.fixture(scope="module")
def batch():
  """Four rows: 3 tokens of prefix, 3 of suffix, 2 of padding."""
  rng = np.random.default_rng(0)
  text = rng.integers(4, 320, size=(4, 8))
  text[:, 6:] = 0
  mask_ar = np.tile(np.arange(8) >= 3, (4, 1))
  arrays = dict(image=tiny.batch(rows=4)["image"], text=text, mask_ar=mask_ar)
  return {
    name: jnp.asarray(a, jnp.float32 if name == "image" else jnp.int32)
    for name, a in arrays.items()
  }


@pytest.fixture(scope="module")
def logits_of(values):
  model = tiny.model()
  run = jax.jit(lambda values, batch: model.apply({"params": values}, **batch)[0])
  return lambda batch, **changed: np.asarray(run(values, {**batch, **changed}))


def changed_positions(a, b):
  """Per row and position, whether any logit differs by a bit."""
  return (a != b).any(axis=-1)


@pytest.mark.parametrize(
  ("position", "attended_from"), [(0, 0), (2, 0), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]
)
def test_which_positions_attend_to_a_token(position, attended_from, batch, logits_of):
  """Position 6 and 7 are padding: no other token attends to it, nor do other rows."""
  text = batch["text"].at[1, position].add(1)
  changed = changed_positions(logits_of(batch), logits_of(batch, text=text))
  expected = np.zeros((4, 8), bool)
  expected[1, attended_from:] = True
  np.testing.assert_array_equal(changed, expected)


def test_all_text_attends_to_every_pixel(batch, logits_of):
  image = batch["image"].at[2, 0, 0, 0].add(0.5)
  changed = changed_positions(logits_of(batch), logits_of(batch, image=image))
  np.testing.assert_array_equal(changed, np.arange(4)[:, None] == np.full(8, 2))


def test_a_masked_image_has_no_effect(batch, logits_of):
  one = logits_of(batch)
  other = np.random.default_rng(5).uniform(-1, 1, size=batch["image"].shape)
  two = jnp.stack([batch["image"], jnp.asarray(other, jnp.float32)], axis=1)
  first, both = (jnp.tile(jnp.asarray([mask]), (4, 1)) for mask in ([True, False], [True, True]))
  masked = logits_of(batch, image=two, image_mask=first)
  np.testing.assert_allclose(masked, one, atol=1e-5 * np.abs(one).max())
  changed = two.at[:, 1].multiply(-0.5)
  np.testing.assert_array_equal(logits_of(batch, image=changed, image_mask=first), masked)
  seen = logits_of(batch, image=two, image_mask=both)
  assert np.abs(seen - one).max() > 1e-2
  assert changed_positions(logits_of(batch, image=changed, image_mask=both), seen).all()
  # Also where the masked image comes before the other.
  swapped = logits_of(batch, image=two[:, ::-1], image_mask=first[:, ::-1])
  np.testing.assert_allclose(swapped, one, atol=1e-5 * np.abs(one).max())


def test_a_sequence_of_one_image_equals_that_image(batch, logits_of):
  np.testing.assert_array_equal(logits_of(batch, image=batch["image"][:, None]), logits_of(batch))


def test_prefix_lm_mask_as_drawn():
  """Two of image, two of prefix, three of suffix, the last one padding; then with validity."""
  drawn = """
    1 1 1 1 0 0 0
    1 1 1 1 0 0 0
    1 1 1 1 0 0 0
    1 1 1 1 0 0 0
    1 1 1 1 1 0 0
    1 1 1 1 1 1 0
    1 1 1 1 1 1 1"""
  with_validity = """
    1 0 1 1 0 0 0
    0 0 0 0 0 0 0
    1 0 1 1 0 0 0
    1 0 1 1 0 0 0
    1 0 1 1 1 0 0
    1 0 1 1 1 1 0
    0 0 0 0 0 0 0"""
  read = lambda text: np.array([line.split() for line in text.split("\n")[1:]]) == "1"  # noqa: E731
  mask_ar = jnp.asarray([[0, 0, 0, 0, 1, 1, 1]])
  np.testing.assert_array_equal(paligemma.prefix_lm_mask(mask_ar)[0], read(drawn))
  valid = jnp.asarray([[True, False, True, True, True, True, False]])
  np.testing.assert_array_equal(paligemma.prefix_lm_mask(mask_ar, valid)[0], read(with_validity))
  # A block in the middle of a row: its tokens see each other, and all before.
  blocks = np.asarray(paligemma.prefix_lm_mask(jnp.asarray([[0, 1, 0, 1]]))[0]).astype(int)
  assert blocks.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_one_key_head_per_query_head_equals_grouped_heads_with_copies(batch, values, logits_of):
  """Fused weights, as in gemma_7b; query heads 0 and 1 share the first key head, and so on."""
  flat = param_tree.flatten(values)
  q_LNDH = flat.pop("llm/layers/attn/q_einsum/w")
  k_LKDH, v_LKDH = np.moveaxis(flat.pop("llm/layers/attn/kv_einsum/w"), 1, 0)
  k_LNDH, v_LNDH = (np.repeat(a, 2, axis=1) for a in (k_LKDH, v_LKDH))
  flat["llm/layers/attn/qkv_einsum/w"] = np.stack([q_LNDH, k_LNDH, v_LNDH], axis=1)
  model = tiny.model(llm=dict(num_kv_heads=4))
  fused, _ = jax.jit(model.apply)({"params": param_tree.unflatten(flat)}, **batch)
  grouped = logits_of(batch)
  np.testing.assert_allclose(fused, grouped, atol=1e-5 * np.abs(grouped).max())


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: gemma.get("gemma3_2b"), r"'gemma3_2b' is none of gemma_2b, .*give all sizes"),
    (lambda: gemma.get("gemma2_2b", widht=3), r"no field \['widht'\]"),
    (lambda: gemma.get("gemma2_2b", num_kv_heads=3), "num_heads=8 is no multiple .*=3"),
    (lambda: siglip.get("So401m/14"), r"'So401m/14' is not SIZE/PATCH .*'width'"),
    (lambda: siglip.get("So400m"), r"'So400m' is not SIZE/PATCH .*\['patch_size'\]"),
    (lambda: siglip.get("B/16", num_heads=7), "width=768 is no multiple of num_heads=7"),
    (lambda: siglip.get("B/16", pool_type="map"), "pool_type='map': .* has 'none'"),
    (lambda: remat.policy("nothing"), "'nothing' is not a policy; allowed: auto, balanced"),
    (lambda: of_model.param_shapes(tiny.model(), 20), "20x20 .* patch size 8x8"),
    (lambda: of_model.param_shapes(tiny.model(dtype="float8"), tiny.RES), "dtype='float8'"),
  ],
)
def test_impossible_sizes_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()
