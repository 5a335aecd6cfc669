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
# Names given with `jax.ad_checkpoint.checkpoint_name` in attention.py, geglu.py and gemma.py.
_MLP_OUT = _rules.save_only_these_names("mlp_out")
_ATTENTION = _rules.save_only_these_names("attn_out", "attn_lse")

POLICIES = {
  # The reference's: a layer keeps its input alone.
  "nothing_saveable": Policy(_rules.nothing_saveable),
  # The same, and the MLP's wide arrays exist for a quarter of the tokens at a time.
  "least_memory": Policy(_rules.nothing_saveable, mlp_chunks=4),
  # What the MLP returned is kept, so that its last product is not computed twice.
  "mlp_out_saveable": Policy(_MLP_OUT),
  "mlp_out_saveable_chunked": Policy(_MLP_OUT, mlp_chunks=4),
  # What attention returned is kept, so that no score is computed twice more: for long sequences.
  "attention_saveable": Policy(_ATTENTION),
  # Every product with a weight, and attention: no product is computed twice.
  "products_saveable": Policy(
    _rules.save_from_both_policies(_rules.dots_with_no_batch_dims_saveable, _ATTENTION)
  ),
  "dots_with_no_batch_dims_saveable": Policy(_rules.dots_with_no_batch_dims_saveable),
  "dots_saveable": Policy(_rules.dots_saveable),
  "none": Policy(None),
}
BALANCED = "balanced"  # The policy that suits where the step runs; see `chosen`.


def chosen(name: str | None, dtype: str, num_devices: int) -> str:
  """The name of the policy itself, for "balanced" (or None) and where the step runs.

  On one device chunks save more memory than the MLP's outputs take, if these are bfloat16. Over
  several, each chunk would have to gather the weights again.
  """
  if name not in (None, BALANCED):
    return name
  if num_devices > 1:
    return "nothing_saveable"
  return "least_memory" if dtype == "float32" else "mlp_out_saveable_chunked"


def policy(name: str | None) -> Policy:
  """The policy of that name; for "balanced" and None the reference's, which suits everywhere."""
  if name in (None, BALANCED):
    name = "nothing_saveable"
  if name not in POLICIES:
    raise UserError(f"remat={name!r} is not a policy; allowed: {', '.join([BALANCED, *POLICIES])}.")
  return POLICIES[name]


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
