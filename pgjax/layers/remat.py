"""Which activations of a layer are stored for its backward pass? The others are recomputed.

Measured memory and modelled time of each policy on the 3B: benchmarks/results.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from pgjax.errors import UserError


class Policy(NamedTuple):
  """What is stored, and in how many chunks of the sequence the MLP runs."""

  rule: Any  # Of jax.checkpoint_policies, or None: everything is stored.
  mlp_chunks: int = 1
  chunk_tokens: int | None = None  # More chunks where they would have more tokens of an example.


_rules = jax.checkpoint_policies
# The names are those of `checkpoint_name` in attention.py, geglu.py, gemma.py and siglip.py.
_MLP_OUT = _rules.save_only_these_names("mlp_out")
_ATTENTION = _rules.save_only_these_names("attn_out", "attn_lse")
_OUTPUTS = ("mlp_out", "attn_out", "attn_lse", "q", "k", "v")
_ALL_BUT_UP = (*_OUTPUTS, "attn_proj", "mlp_gate")
_OF_IMAGES = ("img_query", "img_key", "img_value", "img_attn_proj", "img_mlp_up")

POLICIES = {
  # The reference's: a layer stores only its input.
  "nothing_saveable": Policy(_rules.nothing_saveable),
  # The same, and the MLP's wide arrays exist for a quarter of the tokens at a time, or fewer.
  "least_memory": Policy(_rules.nothing_saveable, mlp_chunks=4, chunk_tokens=288),
  # The MLP's output, so that its last product is not computed twice.
  "mlp_out_saveable": Policy(_MLP_OUT),
  "mlp_out_saveable_chunked": Policy(_MLP_OUT, mlp_chunks=4),
  # Attention's output, so that scores are recomputed once, not twice: for long sequences.
  "attention_saveable": Policy(_ATTENTION),
  # The MLP's output, and attention's inputs and output: they save the most time for their size.
  "outputs_saveable": Policy(_rules.save_only_these_names(*_OUTPUTS)),
  # Every product of the text tower but one of the MLP's two wide ones, and attention's output.
  "mlp_gate_saveable": Policy(_rules.save_only_these_names(*_ALL_BUT_UP)),
  # Every product with a weight, an adapter's part added, and attention: none is computed twice.
  "products_saveable": Policy(_rules.save_only_these_names(*_ALL_BUT_UP, "mlp_up", *_OF_IMAGES)),
  "dots_with_no_batch_dims_saveable": Policy(_rules.dots_with_no_batch_dims_saveable),
  "dots_saveable": Policy(_rules.dots_saveable),
  "none": Policy(None),
}
BALANCED = "balanced"  # The policy that suits where the step runs; see `chosen`.
AUTO = "auto"  # The fastest that fits: planning/remat_choice.py, else as "balanced".


def chosen(name: str | None, dtype: str, num_devices: int) -> str:
  """The policy's name; "balanced", "auto" and None are resolved by where the step runs."""
  if name not in (None, BALANCED, AUTO):
    return name
  if num_devices > 1:
    return "nothing_saveable"  # With chunks, each would gather the weights again.
  return "least_memory" if dtype == "float32" else "mlp_out_saveable_chunked"


def policy(name: str | None) -> Policy:
  """The policy of that name; for "balanced", "auto" and None the reference's."""
  if name in (None, BALANCED, AUTO):
    name = "nothing_saveable"
  if name not in POLICIES:
    raise UserError(
      f"remat={name!r} is not a policy; allowed: {', '.join([AUTO, BALANCED, *POLICIES])}."
    )
  return POLICIES[name]


def mlp_chunks(name: str | None, tokens: int) -> int:
  """In how many equal parts of the tokens the MLP runs under that policy."""
  _, chunks, most = policy(name)
  while most and tokens > chunks * most:
    chunks *= 2
  return math.gcd(chunks, tokens)


def checkpointed(block, name: str | None, static_argnums=()):
  """`block` (a linen class) under the policy of that name."""
  rule = policy(name).rule
  if rule is None:
    return block
  # A scan does not need prevent_cse.
  return nn.remat(block, prevent_cse=False, policy=rule, static_argnums=static_argnums)
