import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pgjax.data import mask_tokens, masks
from pgjax.errors import UserError
from pgjax.formats import lazy_array, npz, seg_vae_npz
from pgjax.models import seg_vae, seg_vae_training


@pytest.fixture(scope="module")
def params():
  """A narrow VQ-VAE whose biases are not zero."""
  values = seg_vae.init(jax.random.key(0), width=16, embed_dim=12)
  leaves, tree = jax.tree.flatten(values)
  rng = np.random.default_rng(0)
  noise = [rng.normal(scale=0.1, size=leaf.shape).astype(np.float32) for leaf in leaves]
  return jax.tree.unflatten(tree, [np.asarray(a) + b for a, b in zip(leaves, noise, strict=True)])


def blobs(count, seed=0, size=64):
  """Two turned ellipses less a third, cut to their box: float32 [count, 64, 64, 1]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size] / size * 2 - 1

  def ellipse():
    (cy, cx), angle, (a, b) = (
      rng.uniform(-0.6, 0.6, 2), rng.uniform(0, np.pi), rng.uniform(0.2, 0.7, 2)
    )  # fmt: skip
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return (u / a) ** 2 + (v / b) ** 2 < 1

  crops = []
  while len(crops) < count:
    mask = (ellipse() | ellipse()) & ~ellipse()
    if mask.any():
      (y0, x0), (y1, x1) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
      height, width = mask.shape
      crops.append(masks.crop(mask, (y0 / height, x0 / width, y1 / height, x1 / width)))
  return np.stack(crops)[..., None]


def test_masks_encode_to_codes_and_codes_decode_to_masks(params):
  some = blobs(5)
  codes = np.asarray(seg_vae.encode(params, some))
  assert codes.shape == (5, 16)
  assert codes.min() >= 0
  assert codes.max() < 128
  assert len(np.unique(codes)) > 3
  decoded = np.asarray(seg_vae.decode(params, codes))
  assert decoded.shape == (5, 64, 64, 1)
  assert np.std(decoded, axis=(1, 2, 3)).min() > 0


def test_a_code_is_the_nearest_and_the_first_of_two(params):
  codebook = np.array([[0.0, 0], [1, 0], [1, 0], [5, 5]], np.float32)
  vectors = np.array([[0.4, 0], [0.6, 0], [9, 9], [0.5, 0]], np.float32).reshape(1, 2, 2, 2)
  codes = seg_vae.nearest(codebook, jnp.asarray(vectors))
  assert np.asarray(codes).ravel().tolist() == [0, 1, 3, 0]


def test_codes_are_read_row_by_row(params):
  """A change above on the right changes the vectors there most, and the other way round."""
  mask = np.zeros((2, 64, 64, 1), np.float32)
  mask[1, :24, 40:] = 1
  a, b = np.asarray(seg_vae.latents(params, jnp.asarray(mask)))
  quadrants = np.abs(a - b).sum(-1).reshape(2, 2, 2, 2).sum((1, 3))
  assert quadrants.argmax() == 1
  codes = np.zeros((2, 16), np.int32)
  codes[1, 3] = 7
  c, d = np.asarray(seg_vae.decode(params, codes))[..., 0]
  quadrants = np.abs(c - d).reshape(2, 32, 2, 32).sum((1, 3))
  assert quadrants.argmax() == 1


def test_the_encoder_of_the_input_pipeline_is_the_models(params):
  some = blobs(40, seed=1)
  ours = mask_tokens.MaskEncoder(params)(some[..., 0])
  np.testing.assert_array_equal(ours, seg_vae.encode(params, some))


def test_saved_weights_load_bit_for_bit(params, tmp_path, monkeypatch):
  seg_vae_npz.save(tmp_path / "vae-oid.npz", params)
  for name in (str(tmp_path / "vae-oid.npz"), "oi"):
    monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
    seg_vae_npz.load.cache_clear()
    loaded = seg_vae_npz.load(name)
    assert jax.tree.structure(loaded) == jax.tree.structure(dict(params))
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(params))
  seg_vae_npz.load.cache_clear()


def test_other_arrays_of_the_file_are_ignored(params, tmp_path):
  arrays = seg_vae.to_arrays(params) | {"_vq_vae._ema_w": np.ones((3, 4), np.float32)}
  counter = np.ones((2,), np.int64)  # A dtype that weights do not have.
  leaves = {name: lazy_array.of_array(a) for name, a in {**arrays, "steps": counter}.items()}
  npz.write_npz(tmp_path / "a.npz", leaves)
  loaded = seg_vae_npz.load(str(tmp_path / "a.npz"))
  jax.tree.map(np.testing.assert_array_equal, loaded, dict(params))


def test_missing_weights_raise_with_their_source(tmp_path, monkeypatch):
  monkeypatch.delenv("PGJAX_WEIGHTS_DIR", raising=False)
  seg_vae_npz.load.cache_clear()
  with pytest.raises(UserError, match=r"PGJAX_WEIGHTS_DIR, which is not set.*gs://big_vision/pali"):
    seg_vae_npz.load("oi")
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"'oi', are not there \(.*vae-oid.npz\): .*gs://"):
    seg_vae_npz.load("oi")
  with pytest.raises(UserError, match=r"'mine.npz', are not there \(mine.npz\)"):
    seg_vae_npz.load("mine.npz")
  (tmp_path / "vae-oid.npz").write_text("no zip")
  with pytest.raises(UserError, match=r"damaged or no \.npz file"):
    seg_vae_npz.load("oi")


@pytest.mark.parametrize(
  ("name", "shape", "message"),
  [
    ("encoder.2.weight", None, "not a VQ-VAE of masks: encoder.2.weight and 0 more are missing"),
    ("encoder.2.weight", (8, 9, 4, 4), r"encoder.2: its weight is \(8, 9, 4, 4\)"),
    ("encoder.2.weight", (8, 8, 4, 5), r"encoder.2: its weight"),
    ("encoder.2.bias", (9,), r"encoder.2: .* its bias \(9,\)"),
    ("_vq_vae._embedding", (128,), "a codebook is"),
    ("_vq_vae._embedding", (128, 13), "the encoder gives 12 channels"),
    ("decoder.4.weight", (16, 16, 3, 3), "decoder.4: a kernel of side 3 does not halve or double"),
    ("decoder.12.weight", (2, 8, 1, 1), r"decoder.12: .* its bias \(1,\)"),
  ],
)
def test_shapes_that_do_not_fit_raise(params, name, shape, message):
  arrays = seg_vae.to_arrays(params)
  del arrays[name]
  if shape:
    arrays[name] = np.ones(shape, np.float32)
  with pytest.raises(UserError, match=message):
    seg_vae.from_arrays(arrays)


def test_a_codebook_larger_than_the_tokens_raises(params):
  with pytest.raises(UserError, match="The codebook has 129 codes, but only 128 <seg> exist"):
    mask_tokens.MaskEncoder(dict(params, codebook=np.ones((129, 12), np.float32)))


@pytest.mark.long
def test_an_unused_code_restarts_at_a_vector(params):
  tx = optax.adam(1e-3)
  far = np.array(params["codebook"])
  far[1:] += 1e4  # All vectors choose code 0.
  state = seg_vae_training.start(dict(params, codebook=jnp.asarray(far)), tx)
  count = np.where(np.arange(128) < 5, 1.0, 0.05).astype(np.float32)
  state = state._replace(count_K=jnp.asarray(count), sum_KE=jnp.asarray(far * count[:, None]))
  some = jnp.asarray(blobs(4))
  latents = np.asarray(seg_vae.latents(state.params, some)).reshape(-1, 12)
  state, measured = seg_vae_training.update(state, some, jax.random.key(1), tx)
  assert measured["codes_used"] == 1 / 128
  codebook = np.asarray(state.params["codebook"])
  for code in codebook[5:]:
    assert np.abs(latents - code).sum(-1).min() < 1e-5
  np.testing.assert_allclose(codebook[1:5], far[1:5], rtol=1e-5)
  mean = (0.99 * far[0] + 0.01 * latents.sum(0)) / (0.99 + 0.01 * len(latents))
  np.testing.assert_allclose(codebook[0], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_training_from_scratch_reconstructs_unseen_masks():
  tx = optax.adam(3e-3)
  state = seg_vae_training.start(seg_vae.init(jax.random.key(0), width=16, embed_dim=16), tx)
  update = jax.jit(  # Convolutions are worth compiling well.
    functools.partial(seg_vae_training.update, tx=tx),
    compiler_options=dict(xla_backend_optimization_level=3),
  )
  seen = blobs(1000, seed=0)
  rng, used = np.random.default_rng(0), []
  for step in range(150):
    batch = jnp.asarray(seen[rng.integers(0, len(seen), 16)])
    state, measured = update(state, batch, jax.random.key(step))
    used.append(measured["codes_used"])
  assert np.mean(used[-10:]) > 0.2  # That of one batch varies from step to step.
  unseen = blobs(100, seed=1) > 0.5
  decoded = seg_vae.decode(state.params, seg_vae.encode(state.params, unseen.astype(np.float32)))
  same = np.broadcast_to(seen.mean(axis=0) > 0.5, unseen.shape)  # The best answer to all of them.
  reached, blind = (
    np.mean([masks.iou(a, b) for a, b in zip(unseen, other, strict=True)])
    for other in (np.asarray(decoded) > 0, same)
  )
  assert blind < 0.6
  assert reached > 0.8
