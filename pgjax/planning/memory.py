"""What lies in a device's memory during a training step?

Bytes of one device: what a step is given, from the shapes and shardings of its abstract state; what
it makes on the way, from the compiler's own analysis of the compiled step. Nothing is allocated
here. What could be done about it is in planning/savings.py.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pgjax.data import device_feed
from pgjax.layers import cross_entropy, mixed_precision
from pgjax.models import paligemma
from pgjax.params import names as param_names, tree as param_tree

# What no compiler sees: the CUDA context with the libraries' own buffers, and fragmentation.
RESERVE_BYTES, RESERVE_SHARE = 600_000_000, 0.03
PREALLOCATED = 0.75  # JAX takes this share of a GPU, unless XLA_PYTHON_CLIENT_MEM_FRACTION says.


class Need(NamedTuple):
  """Bytes of one device during a step. The fields down to `workspace` add up to `step`."""

  trained: int  # Parameters that train, LoRA's factors excepted.
  frozen: int  # Parameters that do not, as they are stored.
  lora: int
  optimizer: int
  batch: int
  other: int  # The step's number, and what a later version of the state holds.
  gradients: int  # From shapes; at most what is there for all temporaries.
  workspace: int  # The other temporaries: activations, logits, one layer's own arrays.
  logits: int  # Within `workspace`: of one chunk of the loss.

  @property
  def arguments(self) -> int:
    """What a step is given."""
    return sum(self[:6])

  @property
  def temporaries(self) -> int:
    """What it makes on the way, at the moment when that is most."""
    return self.gradients + self.workspace

  @property
  def step(self) -> int:
    """Both: what the compiler's analysis says."""
    return self.arguments + self.temporaries

  @property
  def waiting(self) -> int:
    """The batches that wait for their step."""
    return device_feed.PREFETCH_DEPTH * self.batch

  @property
  def reserve(self) -> int:
    """What no compiler sees."""
    return RESERVE_BYTES + round(RESERVE_SHARE * self.step)

  @property
  def total(self) -> int:
    """What a device must have."""
    return self.step + self.waiting + self.reserve


def need(config: Any, model: Any, state: Any, batch: Mapping[str, Any],
         rules: Mapping[str, Any], temporaries: int | None) -> Need:  # fmt: skip
  """From the abstract state and batch of a step, and the temporaries of the compiled one.

  Without a compiled step the gradients are all that is known of these.
  """
  parts = dict.fromkeys(("trained", "frozen", "lora"), 0)
  for name, leaf in param_tree.flatten(state.params).items():
    parts[part_of(name, rules)] += device_bytes(leaf)
  rest = [value for name, value in state._asdict().items() if name not in ("params", "opt_state")]
  gradients = gradient_bytes(model, state, rules) * (2 if config.microbatches > 1 else 1)
  temporaries = gradients if temporaries is None else temporaries
  gradients = min(gradients, temporaries)
  return Need(
    **parts,
    optimizer=tree_bytes(state.opt_state),
    batch=tree_bytes(batch),
    other=tree_bytes(rest),
    gradients=gradients,
    workspace=temporaries - gradients,
    # A table split by rows takes the chunks of all its devices, each a part of the columns.
    logits=4 * loss_chunks(config, batch, rules)[0] * model.llm_config.vocab_size,
  )


def part_of(name: str, rules: Mapping[str, Any]) -> str:
  """ "trained", "frozen" or "lora", for a leaf of the state's parameters.

  The arrays of a quantized leaf have its name with one more part.
  """
  if name.startswith(param_names.LORA):
    return "lora"
  base = name if name in rules else name.rpartition("/")[0]
  return "trained" if rules[base].kind == "train" else "frozen"


def device_bytes(leaf: Any) -> int:
  """Of an abstract array on one device; none if it is kept in the host's memory."""
  if leaf.sharding is not None and "host" in str(leaf.sharding.memory_kind):
    return 0
  shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def tree_bytes(tree: Any) -> int:
  """Of all arrays of a tree on one device."""
  return sum(device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def gradient_bytes(model: Any, state: Any, rules: Mapping[str, Any]) -> int:
  """Of all gradients at once. While microbatches are added up, there are two sets of them."""
  moving = {
    name: leaf
    for name, leaf in param_tree.flatten(state.params).items()
    if part_of(name, rules) != "frozen"
  }
  total = 0
  for name, leaf in jax.eval_shape(
    lambda leaves: mixed_precision.differentiable(leaves, model.dtype), moving
  ).items():
    narrow = leaf.dtype.itemsize / moving[name].dtype.itemsize
    total += round(device_bytes(moving[name]) * narrow)
  return total


def loss_chunks(config: Any, batch: Mapping[str, Any], rules: Mapping[str, Any]) -> tuple[int, int]:
  """(tokens of a chunk, chunks) of the loss on a device, if every token of its text is learned."""
  rows, length = batch["text"].sharding.shard_shape(batch["text"].shape)
  tokens = max(1, rows // config.microbatches) * (length - 1)
  chunk = min(
    tokens, cross_entropy.chunk_size(tokens, rules[paligemma.TOKEN_TABLE].kind == "train")
  )
  return chunk, -(-tokens // chunk)
