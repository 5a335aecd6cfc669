"""attend() and its backward pass by hand, against a plain softmax attention in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from pgjax.distributed import mesh as mesh_lib
from pgjax.layers import attention
from pgjax.planning import hlo

CASES = {
  "grouped heads, cap": dict(K=2, G=3, softcap=5.0),
  "grouped heads, no cap": dict(K=2, G=3, softcap=0.0),
  "one head each, no mask": dict(K=4, G=1, softcap=0.0, masked=False),
  # Above 80, exp(cap) summed over keys leaves float32: there the maximum is subtracted.
  "one key head, a cap too high for exp": dict(K=1, G=4, softcap=500.0, scale=300.0),
  "scores of 1000 under a cap": dict(K=2, G=2, softcap=50.0, scale=1000.0),
  "scores of 200, no cap": dict(K=2, G=2, softcap=0.0, scale=200.0),
}


def plain(q, k, v, dout, mask, softcap):
  """(out, dq, dk, dv) by the formulas of softmax attention."""
  q, k, v, dout = (np.asarray(a, np.float64) for a in (q, k, v, dout))
  scores = np.einsum("BTKGH,BSKH->BKGTS", q, k)
  slope = 1.0
  if softcap:
    tanh = np.tanh(scores / softcap)
    scores, slope = softcap * tanh, 1 - tanh**2
  if mask is not None:
    scores = np.where(mask[:, None, None], scores, -np.inf)
  probs = np.exp(scores - scores.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  dprobs = np.einsum("BTKGH,BSKH->BKGTS", dout, v)
  dscores = slope * probs * (dprobs - (probs * dprobs).sum(-1, keepdims=True))
  return (
    np.einsum("BKGTS,BSKH->BTKGH", probs, v),
    np.einsum("BKGTS,BSKH->BTKGH", dscores, k),
    np.einsum("BKGTS,BTKGH->BSKH", dscores, q),
    np.einsum("BKGTS,BTKGH->BSKH", probs, dout),
  )


def inputs(*, K, G, softcap, masked=True, scale=None, T=6, S=7, H=8):
  """q, k, v, a cotangent, a mask in which every query has a key; `scale`: the largest score."""
  rng = np.random.default_rng(0)
  q, dout = (rng.normal(size=(2, T, K, G, H)).astype(np.float32) for _ in range(2))
  k, v = (rng.normal(size=(2, S, K, H)).astype(np.float32) for _ in range(2))
  if scale:
    q *= scale / np.abs(np.einsum("BTKGH,BSKH->BKGTS", q, k)).max()
  mask = rng.random((2, T, S)) < 0.6
  mask[:, :, 0] |= ~mask.any(axis=2)
  assert not mask.all()
  return q, k, v, dout, mask if masked else None


def value_and_gradients(q, k, v, dout, mask, softcap):
  @jax.jit
  def run(q, k, v, dout, mask):
    out, vjp = jax.vjp(lambda q, k, v: attention.attend(q, k, v, mask, softcap), q, k, v)
    return out, *vjp(dout)

  return [np.array(a, np.float32) for a in run(q, k, v, dout, mask)]


@pytest.mark.parametrize("case", ["grouped heads, cap", "one head each, no mask"])
def test_a_mesh_splits_queries_and_heads_without_moving_scores(case):
  arrays, softcap = inputs(**CASES[case], T=8, S=8), CASES[case]["softcap"]
  mesh = mesh_lib.make_mesh([("data", 2), ("tensor", 2), ("sequence", 2)], jax.devices())
  heads, rows = P("data", "sequence", "tensor"), P("data", "sequence")
  specs = heads, heads, heads, heads, None if arrays[-1] is None else rows
  places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  constrain = mesh_lib.batch_constraint(mesh)

  @functools.partial(jax.jit, in_shardings=places)
  def run(q, k, v, dout, mask):
    def split(q, k, v):
      k, v = (constrain.gathered_keys(a, "BTKH") for a in (k, v))
      return attention.attend(q, k, v, mask, softcap, "float32", True)

    out, vjp = jax.vjp(split, q, k, v)
    return out, *vjp(dout)

  assert_all_close(run(*arrays), plain(*arrays, softcap), 1e-5)
  text = run.lower(*arrays).compile().as_text()
  largest = arrays[1].nbytes // 2 * 2  # Keys and values of one head of `tensor`.
  for collective in hlo.collectives(text, mesh.shape):
    assert collective.axes == "sequence"
    assert collective.bytes <= 2 * largest


def assert_all_close(ours, theirs, tolerance):
  """Output and gradients of q, k, v, each within `tolerance` of its largest value."""
  for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients_equal_plain_attention(case):
  arguments = (*inputs(**case), case["softcap"])
  tolerance = 1e-4 if "scale" in case else 2e-6  # Float32 rounds a score of 1000 to 6e-5.
  assert_all_close(value_and_gradients(*arguments), plain(*arguments), tolerance)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_query_without_keys_is_finite_and_does_not_affect_others(softcap):
  q, k, v, dout, mask = inputs(K=2, G=2, softcap=softcap)
  mask[0, 2] = False
  dout[0, 2] = 0  # Nothing reads such a row.
  ours = value_and_gradients(q, k, v, dout, mask, softcap)
  expected = np.broadcast_to(v[0].mean(0)[:, None], (2, 2, 8)) if not softcap else 0.0
  np.testing.assert_allclose(ours[0][0, 2], expected, atol=1e-6)

  # As if the query attended to something else: its output changes, nothing else does.
  mask[0, 2, 3] = True
  theirs = plain(q, k, v, dout, mask, softcap)
  ours[0][0, 2] = theirs[0][0, 2]
  assert_all_close(ours, theirs, 2e-6)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_bfloat16_stays_close_to_float32(softcap):
  q, k, v, dout, mask = inputs(K=2, G=2, softcap=softcap)
  low = [jnp.asarray(a, jnp.bfloat16) for a in (q, k, v, dout)]
  ours = value_and_gradients(*low, mask, softcap)
  # From the same rounded inputs, so that only the products' and the result's rounding is left.
  assert_all_close(ours, plain(*low, mask, softcap), 1e-2)


@pytest.mark.parametrize(("score_dtype", "expected"), [("float32", 0.731), ("bfloat16", 0.5)])
def test_scores_are_only_rounded_to_score_dtype(score_dtype, expected):
  """Near 4096 bfloat16 has steps of 16 or 32, which a difference of 1 does not survive."""
  q = jnp.asarray([64.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 1, 2)
  k = jnp.asarray([[64.0, 1.0], [64.0, 0.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.asarray([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
  out = jax.jit(lambda *a: attention.attend(*a, None, 0.0, score_dtype))(q, k, v)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out).ravel(), [expected, 1 - expected], atol=4e-3)
