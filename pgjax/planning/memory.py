"""What does a training step store in a device's memory?

Bytes of one device: inputs from the shapes and shardings of the abstract state, temporaries from
the compiler's analysis. Nothing is allocated. planning/savings.py suggests how to reduce them.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgspec

from pgjax.data import device_feed
from pgjax.formats.typed_json import Count
from pgjax.layers import cross_entropy, mixed_precision
from pgjax.models import paligemma
from pgjax.params import names as param_names, tree as param_tree

# Not in the compiler's analysis: the CUDA context with the libraries' buffers, and fragmentation.
RESERVE_BYTES, RESERVE_SHARE = 600_000_000, 0.03
PREALLOCATED = 0.75  # JAX's share of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.


class Need(msgspec.Struct, frozen=True):
  """Bytes of one device during a step. The fields down to `workspace` add up to `step`."""

  trained: Count  # Trainable parameters without LoRA factors.
  frozen: Count  # Frozen parameters, in the dtype in which they are stored.
  lora: Count
  optimizer: Count
  batch: Count
  other: Count  # EMA weights and the step's number.
  gradients: Count  # From shapes; at most the compiler's total of temporaries.
  workspace: Count  # The other temporaries: activations, logits, one layer's own arrays.
  logits: Count  # Part of `workspace`: one chunk of the loss.

  @property
  def arguments(self) -> int:
    """The inputs of a step."""
    parameters = self.trained + self.frozen + self.lora
    return parameters + self.optimizer + self.batch + self.other

  @property
  def temporaries(self) -> int:
    """The peak of the temporaries."""
    return self.gradients + self.workspace

  @property
  def step(self) -> int:
    """Inputs and temporaries: the compiler's analysis."""
    return self.arguments + self.temporaries

  @property
  def waiting(self) -> int:
    """Prefetched batches."""
    return device_feed.PREFETCH_DEPTH * self.batch

  @property
  def reserve(self) -> int:
    """CUDA context and fragmentation."""
    return RESERVE_BYTES + round(RESERVE_SHARE * self.step)

  @property
  def total(self) -> int:
    """The memory that a device must have."""
    return self.step + self.waiting + self.reserve

  def with_temporaries(self, size: int) -> "Need":
    """The same inputs with a compiled step's temporaries."""
    gradients = min(self.gradients, size)
    return msgspec.structs.replace(self, gradients=gradients, workspace=size - gradients)


def need(config: Any, model: Any, state: Any, batch: Mapping[str, Any],
         rules: Mapping[str, Any], temporaries: int | None) -> Need:  # fmt: skip
  """Of an abstract state and batch; temporaries of the compiled step, or None: gradients only."""
  parts = dict.fromkeys(("trained", "frozen", "lora"), 0)
  for name, leaf in param_tree.flatten(state.params).items():
    parts[part_of(name, rules)] += device_bytes(leaf)
  gradients = gradient_bytes(model, state, rules)
  if config.microbatches > 1:
    gradients += accumulated_bytes(state, rules, config.accumulation_dtype)
  temporaries = gradients if temporaries is None else temporaries
  gradients = min(gradients, temporaries)
  return Need(
    **parts,
    optimizer=tree_bytes(state.opt_state),
    batch=tree_bytes(batch),
    other=tree_bytes(state._replace(params=(), opt_state=())),
    gradients=gradients,
    workspace=temporaries - gradients,
    # With a table sharded by rows, each device has all chunks and a part of the columns.
    logits=4 * loss_chunks(config, batch, rules)[0] * model.llm_config.vocab_size,
  )


def part_of(name: str, rules: Mapping[str, Any]) -> str:
  """ "trained", "frozen" or "lora", for a leaf of the state's parameters."""
  if name.startswith(param_names.LORA):
    return "lora"
  base = name if name in rules else name.rpartition("/")[0]  # An array of a quantized leaf.
  return "trained" if rules[base].kind == "train" else "frozen"


def device_bytes(leaf: Any) -> int:
  """Of an abstract array on one device; 0 if it is stored in the host's memory."""
  if leaf.sharding is not None and "host" in str(leaf.sharding.memory_kind):
    return 0
  shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def tree_bytes(tree: Any) -> int:
  """Of all arrays of a tree on one device."""
  return sum(device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def gradient_bytes(model: Any, state: Any, rules: Mapping[str, Any]) -> int:
  """Of the gradients of one batch or microbatch."""
  trained = _trained(state, rules)
  cast = functools.partial(mixed_precision.differentiable, dtype=model.dtype)
  gradients = jax.eval_shape(cast, trained)
  narrow = {n: gradients[n].dtype.itemsize / a.dtype.itemsize for n, a in trained.items()}
  return sum(round(device_bytes(a) * narrow[n]) for n, a in trained.items())


def accumulated_bytes(state: Any, rules: Mapping[str, Any], dtype: str) -> int:
  """Of the sum of gradients over microbatches."""
  leaves = _trained(state, rules).values()
  return sum(device_bytes(a) // a.dtype.itemsize for a in leaves) * jnp.dtype(dtype).itemsize


def _trained(state, rules):
  leaves = param_tree.flatten(state.params)
  return {n: leaf for n, leaf in leaves.items() if part_of(n, rules) != "frozen"}


def loss_chunks(config: Any, batch: Mapping[str, Any], rules: Mapping[str, Any]) -> tuple[int, int]:
  """(tokens of a chunk, chunks) of the loss on a device, if every text token is in the loss."""
  rows, length = batch["text"].sharding.shard_shape(batch["text"].shape)
  tokens = max(1, rows // config.microbatches) * (length - 1)
  trains = rules[paligemma.TOKEN_TABLE].kind == "train"
  chunk = min(tokens, cross_entropy.chunk_size(tokens, trains))
  return chunk, -(-tokens // chunk)
