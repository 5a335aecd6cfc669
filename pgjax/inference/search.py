"""Which token comes next, and which of a row's continuations is its answer?

Greedy decoding and sampling choose a token for each branch separately; a beam search compares the
branches of a row at every step. The rules are those of trainers/proj/paligemma/predict_fns.py, with
random keys as arguments and an optional length penalty for the beam.

Axes: B batch, N branches of a row, T new tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pgjax.config.decode_method import Method
from pgjax.inference import grammar_mask, top_k


class Finished(NamedTuple):
  """The best finished hypothesis of a beam search, for each row."""

  tokens: Int[Array, "B T"]
  logp: Float[Array, "B T"]
  score: Float[Array, " B"]


class DecodeState(NamedTuple):
  """The loop state between two tokens."""

  step: Int[Array, ""]  # Tokens chosen so far.
  caches: Any  # Of the layers.
  tokens: Int[Array, "B N T"]  # 0 after an eos, and where no token is chosen yet.
  logp: Float[Array, "B N T"]
  total: Float[Array, "B N"]  # The sum of logp; -inf: no such hypothesis.
  ended: Bool[Array, "B N"]
  path: Int[Array, "B N T"]  # The branch whose slot holds the token of each step.
  place: Int[Array, "B N"] | None  # The state of each branch in its grammar.
  finished: Finished | None


class Rules(NamedTuple):
  """What is constant while a batch is decoded."""

  method: Method
  eos: int
  real_B: Bool[Array, " B"]  # False: a padding row.
  keys_B: Any  # A random key for each row; None for methods that do not sample.
  masks: grammar_mask.Tables | None
  grammar_B: Int[Array, " B"] | None
  mesh: Any = None  # That shards the rows.


def rules(method: Method, eos: int, batch, key, masks, mesh=None) -> Rules:
  """The rules for the arguments of decode.jitted's function."""
  B = batch["text"].shape[0]
  rows_B = jnp.arange(B)
  keys_B = None
  if method.kind == "sample":
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.get("_index", rows_B))
  grammar_B = None if masks is None else batch.get("_grammar", jnp.zeros_like(rows_B))
  return Rules(method, eos, batch.get("_mask", rows_B >= 0), keys_B, masks, grammar_B, mesh)


def start(caches, rules: Rules, max_decode_len: int) -> DecodeState:
  """The state before the first token: N branches a row, of which a beam search has one live."""
  B, N, T = rules.real_B.shape[0], rules.method.branches, max_decode_len
  tokens, zeros = jnp.zeros((B, N, T), jnp.int32), jnp.zeros((B, N, T))
  total, finished = jnp.zeros((B, N)), None
  if rules.method.kind == "beam":
    total = jnp.where(jnp.arange(N) == 0, total, -jnp.inf)
    finished = Finished(tokens[:, 0], zeros[:, 0], jnp.full((B,), -jnp.inf))
  ended = jnp.broadcast_to(~rules.real_B[:, None], (B, N))
  path = jnp.broadcast_to(jnp.arange(N)[:, None], (B, N, T))
  place = None if rules.masks is None else jnp.zeros((B, N), jnp.int32)
  step = jnp.zeros((), jnp.int32)
  return DecodeState(step, caches, tokens, zeros, total, ended, path, place, finished)


def choose(state: DecodeState, logits_BNV: Float[Array, "B N V"], rules: Rules) -> DecodeState:
  """Chooses one more token for every branch."""
  logits_BNV = logits_BNV.astype(jnp.float32)
  lse_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
  allowed_BNV = None
  if rules.masks is not None:
    left = state.tokens.shape[2] - state.step - 1
    before_BN = state.tokens[:, :, jnp.maximum(state.step - 2, 0)]
    allowed_BNV = grammar_mask.allowed(rules.masks, rules.grammar_B, state.place, left, before_BN)
  advance = _beam if rules.method.kind == "beam" else _separately
  return advance(state, logits_BNV, lse_BN, allowed_BNV, rules)


def is_unfinished(state: DecodeState, *, rules: Rules) -> Bool[Array, ""]:
  """Is there room for a token, and a row whose answer can still change?"""
  room = state.step < state.tokens.shape[2]
  if rules.method.kind != "beam":
    return room & ~jnp.all(state.ended)
  # Log-probabilities only fall, so this bounds the score of a live hypothesis.
  bound_BN = _score(state.total, state.tokens.shape[2], rules)
  return room & jnp.any(rules.real_B & (jnp.max(bound_BN, axis=1) >= state.finished.score))


def best(state: DecodeState, rules: Rules) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
  """(tokens, log-probabilities) of the answers."""
  if state.finished is not None:  # With eos=-1 no hypothesis ends: the best live one, then.
    ended_B1 = jnp.isfinite(state.finished.score)[:, None]
    tokens_BT = jnp.where(ended_B1, state.finished.tokens, state.tokens[:, 0])
    logp_BT = jnp.where(ended_B1, state.finished.logp, state.logp[:, 0])
    real_B1 = rules.real_B[:, None]
    return jnp.where(real_B1, tokens_BT, 0), jnp.where(real_B1, logp_BT, 0.0)
  first_B = jnp.argmax(state.total, axis=1)
  return _pick(state.tokens, first_B), _pick(state.logp, first_B)


def _pick(x_BN, branch_B):
  """x[b, branch[b]] of each row."""
  return jax.vmap(lambda x_N, n: x_N[n])(x_BN, branch_B)


def _separately(state, logits_BNV, lse_BN, allowed_BNV, rules):
  """For each branch the likeliest token (the lowest id on ties), or a sampled one."""
  if allowed_BNV is not None:
    logits_BNV = jnp.where(allowed_BNV, logits_BNV, -jnp.inf)
  if rules.method.kind == "greedy":
    token_BN = jnp.argmax(logits_BNV, axis=-1)
  else:
    token_BN = _sampled(logits_BNV, state.step, rules)
  picked_BN = jnp.take_along_axis(logits_BNV, token_BN[..., None], axis=-1)[..., 0]
  logp_BN = jnp.where(state.ended, 0.0, picked_BN - lse_BN)
  token_BN = jnp.where(state.ended, 0, token_BN).astype(jnp.int32)
  return state._replace(
    step=state.step + 1,
    tokens=state.tokens.at[:, :, state.step].set(token_BN),
    logp=state.logp.at[:, :, state.step].set(logp_BN),
    total=state.total + logp_BN,
    ended=state.ended | (token_BN == rules.eos),
    place=_advanced(state.place, token_BN, rules),
  )


def _sampled(logits_BNV, step, rules):
  """A token for each branch, from its row's key; ties with the cutoff are included."""
  method = rules.method
  logits_BNV = logits_BNV / method.temperature
  if method.top_k:
    k = min(method.top_k, logits_BNV.shape[-1])
    cutoff_BN1 = top_k.of_rows(logits_BNV, k, rules.mesh)[0][..., -1:]
    logits_BNV = jnp.where(logits_BNV < cutoff_BN1, -jnp.inf, logits_BNV)
  if method.top_p < 1:
    falling_BNV = -jnp.sort(-logits_BNV, axis=-1)
    mass_BNV = jnp.cumsum(jax.nn.softmax(falling_BNV, axis=-1), axis=-1)
    last_BN1 = jnp.sum(mass_BNV < method.top_p, axis=-1, keepdims=True)
    last_BN1 = jnp.minimum(last_BN1, logits_BNV.shape[-1] - 1)
    cutoff_BN1 = jnp.take_along_axis(falling_BNV, last_BN1, axis=-1)
    logits_BNV = jnp.where(logits_BNV < cutoff_BN1, -jnp.inf, logits_BNV)

  def draw(key, logits_NV):
    key = jax.random.fold_in(key, step)
    keys_N = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(method.branches))
    return jax.vmap(jax.random.categorical)(keys_N, logits_NV)

  return jax.vmap(draw)(rules.keys_B, logits_BNV)


def _beam(state, logits_BNV, lse_BN, allowed_BNV, rules):
  """Compares each live hypothesis as if it ended here; the best N continuations stay live."""
  N, eos, step = rules.method.branches, rules.eos, state.step
  if allowed_BNV is not None:
    logits_BNV = jnp.where(allowed_BNV, logits_BNV, -jnp.inf)
  finished = state.finished
  if eos >= 0:
    finished = _finished(state, logits_BNV[..., eos] - lse_BN, rules)
    logits_BNV = logits_BNV.at[..., eos].set(-jnp.inf)

  B = logits_BNV.shape[0]
  top_BNK, token_BNK = top_k.of_rows(logits_BNV, N, rules.mesh)
  top_BNK -= lse_BN[..., None]
  sums_B1K = (state.total[..., None] + top_BNK).reshape(B, 1, N * N)
  chosen = top_k.of_rows(sums_B1K, N, rules.mesh, by_vocabulary=False)
  total_BN, chosen_BN = (a[:, 0] for a in chosen)
  of_chosen = lambda x_BNK: jnp.take_along_axis(x_BNK.reshape(B, N * N), chosen_BN, axis=1)  # noqa: E731
  of_parent = jax.vmap(lambda x_N, parent_N: x_N[parent_N])
  parent_BN, token_BN = chosen_BN // N, of_chosen(token_BNK)
  place = None if state.place is None else of_parent(state.place, parent_BN)
  return state._replace(
    step=step + 1,
    tokens=of_parent(state.tokens, parent_BN).at[:, :, step].set(token_BN),
    logp=of_parent(state.logp, parent_BN).at[:, :, step].set(of_chosen(top_BNK)),
    total=total_BN,
    path=of_parent(state.path, parent_BN).at[:, :, step].set(jnp.arange(N)),
    place=_advanced(place, token_BN, rules),
    finished=finished,
  )


def _finished(state, eos_logp_BN, rules):
  """The best finished hypothesis of each row, if all its live ones ended with this token."""
  score_BN = _score(state.total + eos_logp_BN, state.step + 1, rules)
  n_B = jnp.argmax(score_BN, axis=1)
  score_B = _pick(score_BN, n_B)
  better_B = score_B > state.finished.score
  tokens_BT = _pick(state.tokens, n_B).at[:, state.step].set(rules.eos)
  logp_BT = _pick(state.logp, n_B).at[:, state.step].set(_pick(eos_logp_BN, n_B))
  better_B1 = better_B[:, None]
  return Finished(
    jnp.where(better_B1, tokens_BT, state.finished.tokens),
    jnp.where(better_B1, logp_BT, state.finished.logp),
    jnp.where(better_B, score_B, state.finished.score),
  )


def _score(total, length, rules):
  penalty = rules.method.length_penalty
  return total / length**penalty if penalty else total


def _advanced(place_BN, token_BN, rules):
  if place_BN is None:
    return None
  return grammar_mask.advance(rules.masks, rules.grammar_B, place_BN, token_BN)
