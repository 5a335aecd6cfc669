"""Which activations of a layer are kept for its backward pass, by name.

Both towers run their layers under `nn.scan`; what a layer does not keep is computed again. The
measured cost of each policy on the 3B is in benchmarks/results.
"""

import flax.linen as nn
import jax

from pgjax.errors import UserError

_POLICIES = jax.checkpoint_policies

# Names given with `jax.ad_checkpoint.checkpoint_name` in gemma.py and siglip.py.
ATTENTION = ("attn_out", "attn_lse")  # Small, and spares the scores, the widest array of a layer.
PROJECTIONS = ("q", "k", "v")
MLP = ("mlp_gate", "mlp_up")

POLICIES = {
  # The reference's policy: a layer keeps its input alone.
  "nothing_saveable": lambda: _POLICIES.nothing_saveable,
  # ... and what attention returned, so that no score is computed twice in the recomputation.
  "attention_saveable": lambda: _POLICIES.save_only_these_names(*ATTENTION),
  # ... and its operands.
  "attention_and_projections_saveable": lambda: _POLICIES.save_only_these_names(
    *ATTENTION, *PROJECTIONS
  ),
  # Every matrix product with a weight, and attention: no product is computed twice.
  "products_saveable": lambda: _POLICIES.save_from_both_policies(
    _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(*ATTENTION)
  ),
  "dots_with_no_batch_dims_saveable": lambda: _POLICIES.dots_with_no_batch_dims_saveable,
  "dots_saveable": lambda: _POLICIES.dots_saveable,
}


def policy(name):
  """The `jax.checkpoint` policy of that name; None for "none", which recomputes nothing."""
  if name == "none":
    return None
  if name not in POLICIES:
    raise UserError(f"remat={name!r} is not a policy; allowed: none, {', '.join(POLICIES)}.")
  return POLICIES[name]()


def checkpointed(block, name, static_argnums=()):
  """`block` (a linen class) under the policy of that name."""
  name = name or "nothing_saveable"
  rule = policy(name)
  if rule is None:
    return block
  # prevent_cse is not needed under a scan.
  return nn.remat(block, prevent_cse=False, policy=rule, static_argnums=static_argnums)
