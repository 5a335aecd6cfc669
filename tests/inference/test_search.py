"""Sampling, best of n and beam search, against plain Python over the full forward pass."""

import functools

import jax
import numpy as np
import pytest
import tiny

from pgjax.config import decode_method
from pgjax.distributed import sharding
from pgjax.errors import UserError
from pgjax.inference import decode
from pgjax.params import tree as param_tree

pytestmark = pytest.mark.xdist_group("search")  # Shares compiled programs.

ROWS, PROMPT_LEN, NEW, EOS = 8, 6, 5, 11


@pytest.fixture(scope="module")
def values():
  """Parameters whose distributions are neither flat nor certain."""
  flat = param_tree.flatten(tiny.parameters(tiny.model()))
  flat["llm/final_norm/scale"] = flat["llm/final_norm/scale"] + 1
  return param_tree.unflatten(flat)


@pytest.fixture(scope="module")
def batch():
  """Prompts of 2 to 6 tokens, the last two rows are padding."""
  rng = np.random.default_rng(1)
  lengths = 2 + np.arange(ROWS)[:, None] % (PROMPT_LEN - 1)
  return dict(
    image=rng.uniform(-1, 1, size=(ROWS, tiny.RES, tiny.RES, 3)).astype(np.float32),
    text=rng.integers(12, 300, size=(ROWS, PROMPT_LEN)).astype(np.int32),
    mask_ar=np.zeros((ROWS, PROMPT_LEN), np.int32),
    mask_input=np.arange(PROMPT_LEN) < lengths,
    _mask=np.arange(ROWS) < ROWS - 2,
  )


def generate(values, batch, method, *, key=None, devices=1, eos=EOS, length=NEW, masks=None):
  mesh = tiny.mesh(devices=devices)
  places = sharding.shardings(tiny.FSDP, {"params": values}, mesh)["params"]
  run = decode.jitted(
    tiny.model(), mesh, places, max_decode_len=length, method=decode_method.parse(method), eos=eos
  )
  key = None if key is None else jax.random.key(key)
  return [np.asarray(a) for a in run(jax.device_put(values, places), batch, key, masks)]


@pytest.fixture(scope="module")
def next_logp(values, batch):
  """f(row, tokens so far) -> float64 [V], from the full forward pass without a cache."""
  model = tiny.model()
  logits_of = jax.jit(lambda values, *a: model.apply({"params": values}, *a)[0])
  lengths = batch["mask_input"].sum(axis=1)

  @functools.cache
  def logp(row, tokens):
    n = lengths[row]
    text = np.zeros((1, PROMPT_LEN + NEW), np.int32)
    text[0, :n], text[0, n : n + len(tokens)] = batch["text"][row, :n], tokens
    mask_ar = (np.arange(PROMPT_LEN + NEW) >= n)[None].astype(np.int32)
    logits = np.float64(logits_of(values, batch["image"][row : row + 1], text, mask_ar))[0]
    logits = logits[n - 1 + len(tokens)]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

  return logp


def beam_by_hand(next_logp, row, beams, penalty):
  """The reference's rule in plain Python: (tokens, score, number of steps)."""
  live, finished = [(0.0, ())], (-np.inf, ())
  for step in range(NEW):
    logps = [next_logp(row, tokens) for _, tokens in live]
    for (total, tokens), logp in zip(live, logps, strict=True):
      score = (total + logp[EOS]) / (step + 1) ** penalty
      finished = max(finished, (score, (*tokens, EOS)), key=lambda pair: pair[0])
    ways = [
      (total + logp[token], (*tokens, token))
      for (total, tokens), logp in zip(live, logps, strict=True)
      for token in np.argsort(-logp, kind="stable")[: beams + 1]
      if token != EOS
    ]
    live = sorted(ways, key=lambda pair: -pair[0])[:beams]
    if live[0][0] / NEW**penalty < finished[0]:
      break
  return finished[1], finished[0], step + 1


@pytest.mark.parametrize(
  "method",
  [
    "beam(3)",
    *(pytest.param(m, marks=pytest.mark.long) for m in ("beam(1)", "beam(4, length_penalty=0.25)")),
  ],
)
def test_beam_search_equals_the_rule_in_plain_python(values, batch, next_logp, method):
  tokens, logp = generate(values, batch, method)
  wanted = decode_method.parse(method)
  answers = [
    beam_by_hand(next_logp, row, wanted.branches, wanted.length_penalty) for row in range(ROWS - 2)
  ]
  for row, (expected, score, _) in enumerate(answers):
    length = len(expected)
    assert tuple(tokens[row, :length]) == expected
    assert not tokens[row, length:].any()
    assert not logp[row, length:].any()
    assert logp[row].sum() / length**wanted.length_penalty == pytest.approx(score, rel=1e-4)
  assert not tokens[ROWS - 2 :].any()
  if wanted.length_penalty:  # Else the cases prove little; golden files have longer answers too.
    assert len({len(expected) for expected, *_ in answers}) > 1
    assert any(steps > len(expected) for expected, _, steps in answers)


@pytest.mark.long
def test_a_length_penalty_changes_which_hypothesis_wins(values, batch):
  plain, _ = generate(values, batch, "beam(3)")
  long, _ = generate(values, batch, "beam(3, length_penalty=3.0)")
  assert np.count_nonzero(long) > np.count_nonzero(plain)


@pytest.mark.long
@pytest.mark.parametrize(
  "method", ["beam(3)", pytest.param("best_of(3, nucleus(0.9))", marks=pytest.mark.long)]
)
def test_a_single_row_and_eight_devices_equal_the_batch(values, batch, method):
  indexed = dict(batch, _index=np.arange(ROWS, dtype=np.int32))
  tokens, logp = generate(values, indexed, method, key=3)
  for other in (
    generate(values, indexed, method, key=3, devices=8),
    generate(values, {name: a[4:5] for name, a in indexed.items()}, method, key=3),
  ):
    rows = slice(None) if len(other[0]) == ROWS else slice(4, 5)
    np.testing.assert_array_equal(other[0], tokens[rows])
    np.testing.assert_allclose(other[1], logp[rows], atol=1e-5)


@pytest.fixture(scope="module")
def copies(batch):
  """512 copies of one prompt, each with its own samples."""
  repeated = {name: np.repeat(a[:1], 512, axis=0) for name, a in batch.items()}
  return dict(repeated, _index=np.arange(512, dtype=np.int32))


@pytest.mark.parametrize(
  ("method", "temperature", "allowed"),
  [
    pytest.param("temperature(0.5)", 0.5, lambda p: p >= 0, marks=pytest.mark.long),
    pytest.param("top_k(3)", 1.0, lambda p: p >= np.sort(p)[-3], marks=pytest.mark.long),
    ("top_k(2, t=2.0)", 2.0, lambda p: p >= np.sort(p)[-2]),
    pytest.param(
      "nucleus(0.6)",
      1.0,
      lambda p: p >= np.sort(p)[::-1][(np.cumsum(np.sort(p)[::-1]) < 0.6).sum()],
      marks=pytest.mark.long,
    ),
    ("nucleus(0.3, t=0.7)", 0.7, None),
  ],
)
def test_sample_frequencies_match_probabilities(
  values, copies, next_logp, method, temperature, allowed
):
  tokens, logp = generate(values, copies, method, key=7, length=1)
  raw = next_logp(0, ())
  p = np.exp(raw / temperature)
  p /= p.sum()
  if allowed is None:
    falling = np.sort(p)[::-1]
    in_support = p >= falling[(np.cumsum(falling) < 0.3).sum()]
  else:
    in_support = allowed(p)
  p = np.where(in_support, p, 0) / p[in_support].sum()
  counts = np.bincount(tokens[:, 0], minlength=len(p))
  assert not counts[p == 0].any()
  likely = p > 0.02
  deviation = np.sqrt(512 * p * (1 - p))
  assert (np.abs(counts - 512 * p) < 4.5 * deviation + 1)[likely].all()
  np.testing.assert_allclose(logp[:, 0], raw[tokens[:, 0]], atol=1e-4)  # The model's, not tempered.


@pytest.mark.long
def test_the_key_and_the_row_s_number_decide_the_sample(values, copies):
  first, _ = generate(values, copies, "temperature(1.0)", key=1)
  again, _ = generate(values, copies, "temperature(1.0)", key=1)
  other, _ = generate(values, copies, "temperature(1.0)", key=2)
  reversed_, _ = generate(
    values, dict(copies, _index=copies["_index"][::-1].copy()), "temperature(1.0)", key=1
  )
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(first, reversed_[::-1])
  assert (first != other).any(axis=1).mean() > 0.5


@pytest.mark.long
def test_best_of_n_is_the_likeliest_of_its_samples(values, copies, next_logp):
  """By the sum of log-probabilities up to the eos; never worse than n = 1."""
  tokens, logp = generate(values, copies, "best_of(8, temperature(1.0))", key=5, length=2)
  single, single_logp = generate(values, copies, "best_of(1, temperature(1.0))", key=5, length=2)
  for row in range(4):
    of_row = tuple(tokens[row, : np.count_nonzero(tokens[row])])
    by_hand = sum(next_logp(0, of_row[:i])[token] for i, token in enumerate(of_row))
    assert logp[row].sum() == pytest.approx(by_hand, abs=1e-3)
  assert (logp.sum(axis=1) >= single_logp.sum(axis=1) - 1e-4).all()
  assert logp.sum(axis=1).mean() > single_logp.sum(axis=1).mean() + 1
  assert single.shape == tokens.shape


@pytest.mark.parametrize(
  ("text", "wrong"),
  [
    ("gredy", "no 'gredy'. Did you mean 'greedy'"),
    ("beam(0)", "n must be a whole number from 1 to 1024, not 0"),
    ("beam()", "missing a required argument: 'n'"),
    (
      "beam(2, penalty=1)",
      r"beam\(n: int, length_penalty: float = 0.0\): there is no argument 'penalty'",
    ),
    ("nucleus(1.5)", "p must be a number > 0 and <= 1, not 1.5"),
    ("temperature(0)", "t must be a number from 1e-06 to 1000000.0, not 0"),
    ("best_of(3, beam(2))", "best_of chooses among samples"),
    ("best_of(3, best_of(2, nucleus(0.9)))", "best_of chooses among samples"),
    ("best_of(2, greedy)", "best_of chooses among samples"),
    ("top_k(__import__('os'))", "k must be"),
    ("beam(3", "cannot be read"),
    ("", "cannot be read; .* There are: greedy, temperature"),
  ],
)
def test_an_invalid_method_raises(text, wrong):
  with pytest.raises(UserError, match=wrong):
    decode_method.parse(text, "config.decode")


def test_valid_methods():
  parse, Method = decode_method.parse, decode_method.Method
  assert parse("greedy") == parse("greedy()") == Method()
  assert parse("nucleus(0.9, t=0.5)") == Method("sample", temperature=0.5, top_p=0.9)
  assert parse("best_of(4, top_k(k=5))") == Method("sample", top_k=5, branches=4)
  assert parse("beam(3, 1.0)") == Method("beam", branches=3, length_penalty=1.0)
