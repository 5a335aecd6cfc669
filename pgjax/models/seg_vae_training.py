"""How is a VQ-VAE of masks trained from scratch, for masks that PaliGemma's own encodes badly?

The loss is the squared error against the mask in [-1, 1] plus the commitment loss, with a
straight-through gradient (arXiv:1711.00937, section 3.2). Each code follows the mean of its vectors
(appendix A.1 there); unused codes restart at a vector of the batch (arXiv:2005.00341, section 3.2).
Axes: as in seg_vae.py; N vectors of a batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgjax.models import seg_vae

COMMITMENT = 0.25
DECAY = 0.99  # Of the running means that the codebook follows.
DEAD_BELOW = 0.1  # Mean number of a batch's vectors that choose a code.


class VaeTrainState(NamedTuple):
  """Weights, optimizer state, and running count and sum of each code's vectors."""

  params: dict[str, Any]
  opt_state: optax.OptState
  count_K: jax.Array
  sum_KE: jax.Array


def start(params: dict[str, Any], tx: optax.GradientTransformation) -> VaeTrainState:
  """The initial state; codes that the first batch does not use restart at its vectors."""
  codebook_KE = params["codebook"]
  halves = {half: params[half] for half in ("encoder", "decoder")}
  count_K = jnp.full(len(codebook_KE), DEAD_BELOW)
  return VaeTrainState(params, tx.init(halves), count_K, codebook_KE * DEAD_BELOW)


def update(
  state: VaeTrainState,
  masks_BHW1: Float[Array, "B 64 64 1"],
  key: jax.Array,
  tx: optax.GradientTransformation,
) -> tuple[VaeTrainState, dict[str, jax.Array]]:
  """One step, compiled by the caller; also returns the loss and the share of codes in use."""
  codebook_KE = state.params["codebook"]
  halves = {half: state.params[half] for half in ("encoder", "decoder")}

  def loss(halves):
    params = dict(halves, codebook=codebook_KE)
    latents_BRCE = seg_vae.latents(params, masks_BHW1)
    codes_BRC = seg_vae.nearest(codebook_KE, jax.lax.stop_gradient(latents_BRCE))
    chosen_BRCE = codebook_KE[codes_BRC]
    through_BRCE = latents_BRCE + jax.lax.stop_gradient(chosen_BRCE - latents_BRCE)
    error = jnp.mean((seg_vae.reconstructed(params, through_BRCE) - (2 * masks_BHW1 - 1)) ** 2)
    commitment = jnp.mean((latents_BRCE - chosen_BRCE) ** 2)
    return error + COMMITMENT * commitment, (latents_BRCE, codes_BRC)

  (value, (latents_BRCE, codes_BRC)), gradients = jax.value_and_grad(loss, has_aux=True)(halves)
  steps, opt_state = tx.update(gradients, state.opt_state, halves)
  latents_NE = latents_BRCE.reshape(-1, latents_BRCE.shape[-1])
  chosen_NK = jax.nn.one_hot(codes_BRC.reshape(-1), len(codebook_KE))
  count_K, sum_KE = _followed(state, latents_NE, chosen_NK, key)
  params = dict(optax.apply_updates(halves, steps), codebook=sum_KE / count_K[:, None])
  used = jnp.mean(chosen_NK.max(axis=0))
  return VaeTrainState(params, opt_state, count_K, sum_KE), dict(loss=value, codes_used=used)


def _followed(state, latents_NE, chosen_NK, key):
  """The running count and sum of each code; unused codes restart at a random vector."""
  count_K = DECAY * state.count_K + (1 - DECAY) * chosen_NK.sum(axis=0)
  sum_KE = DECAY * state.sum_KE + (1 - DECAY) * chosen_NK.T @ latents_NE
  picked_KE = latents_NE[jax.random.randint(key, count_K.shape, 0, len(latents_NE))]
  dead_K = count_K < DEAD_BELOW
  return jnp.where(dead_K, 1.0, count_K), jnp.where(dead_K[:, None], picked_KE, sum_KE)
