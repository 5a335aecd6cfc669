"""Which activations of a layer are kept for its backward pass, by name.

Both towers run their layers under `nn.scan`; what a layer does not keep is computed again. Measured
memory and modelled time of each policy on the 3B: benchmarks/results.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from pgjax.errors import UserError


class Policy(NamedTuple):
  """What is kept, and in how many pieces of the sequence the MLP runs."""

  keep: Any  # A rule of jax.checkpoint_policies, or None: everything is kept.
  mlp_chunks: int = 1


_rules = jax.checkpoint_policies
# Names given with `jax.ad_checkpoint.checkpoint_name` in attention.py, gemma.py and siglip.py.
_ATTENTION = ("attn_out", "attn_lse")

POLICIES = {
  # The reference's: a layer keeps its input alone.
  "nothing_saveable": Policy(_rules.nothing_saveable),
  # The same, and the MLP's wide arrays exist for a quarter of the tokens at a time.
  "least_memory": Policy(_rules.nothing_saveable, mlp_chunks=8),
  # What the MLP returned is kept, so that its last product is not computed twice.
  "mlp_out_saveable": Policy(_rules.save_only_these_names("mlp_out")),
  "mlp_out_saveable_chunked": Policy(_rules.save_only_these_names("mlp_out"), mlp_chunks=8),
  # What attention returned is kept, so that no score is computed twice more: for long sequences.
  "attention_saveable": Policy(_rules.save_only_these_names(*_ATTENTION)),
  # Every product with a weight, and attention: no product is computed twice.
  "products_saveable": Policy(
    _rules.save_from_both_policies(
      _rules.dots_with_no_batch_dims_saveable, _rules.save_only_these_names(*_ATTENTION)
    )
  ),
  "dots_with_no_batch_dims_saveable": Policy(_rules.dots_with_no_batch_dims_saveable),
  "dots_saveable": Policy(_rules.dots_saveable),
  "none": Policy(None),
}
DEFAULT = "nothing_saveable"


def policy(name: str | None) -> Policy:
  """The policy of that name; the default where it is None."""
  if name is not None and name not in POLICIES:
    raise UserError(f"remat={name!r} is not a policy; allowed: {', '.join(POLICIES)}.")
  return POLICIES[name or DEFAULT]


def mlp_chunks(name: str | None) -> int:
  """In how many pieces the MLP runs."""
  return policy(name).mlp_chunks


def checkpointed(block, name: str | None, static_argnums=()):
  """`block` (a linen class) under the policy of that name."""
  keep = policy(name).keep
  if keep is None:
    return block
  # prevent_cse is not needed under a scan.
  return nn.remat(block, prevent_cse=False, policy=keep, static_argnums=static_argnums)
