"""What would a step cost on a mesh? Bytes of a device and seconds, estimated without compiling.

For ranking meshes: products at an assumed share of the peak, and what each axis sends over its
links. B examples of a part of the batch, L tokens of an example, D width.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pgjax.params import tree as param_tree
from pgjax.planning import interconnects, memory

MFU = 0.45
RECOMPUTED = 1.3  # Executed products over model FLOPs, where layers store only their inputs.
EXPOSED = 0.75  # Of the seconds in which weights travel: those in which no kernel runs.
LATENCY = 15e-6  # Seconds to start a collective.
MARGIN = 1.1  # For what is not counted below.


class Run(NamedTuple):
  """A step, as shapes."""

  config: Any
  model: Any
  leaves: Any
  state: Any  # Abstract, with the shardings of the mesh.
  batch: Mapping[str, Any]
  trained: frozenset[str]
  flops: float

  @property
  def item(self) -> int:
    """Bytes of a number of the compute dtype."""
    return 2 if self.config.dtype == "bfloat16" else 4

  def tokens(self, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Tokens of (image tower, text tower) on a device, of a microbatch."""
    config, patch = self.config, self.model.img_config.patch_size
    rows = config.input.batch_size / config.microbatches / _size(mesh, "replica", "data")
    patches = (config.res // patch[0]) * (config.res // patch[1]) * max(1, config.num_frames)
    return tuple(rows * n / mesh["sequence"] for n in (patches, patches + config.text_len))


def _size(mesh, *axes):
  return math.prod(mesh.get(axis, 1) for axis in axes)


def bytes_of(run: Run, mesh: Mapping[str, int]) -> float:
  """The memory that a device must have."""
  need = memory.need(run.config, run.model, run.state, run.batch, run.leaves.rules, None)
  img, llm, tensor = run.model.img_config, run.model.llm_config, mesh["tensor"]
  of_image, of_text = run.tokens(mesh)
  stored = of_text * llm.width * llm.depth + of_image * img.width * img.depth
  scores = of_text * (of_text / max(1e-9, _rows(run, mesh)) * mesh["sequence"])
  widest = 4 * of_text * llm.mlp_dim / tensor + 4 * scores * llm.num_heads / tensor
  gathered = 4 * _layer_size(run) / tensor
  logits = 3 * need.logits / _size(mesh, "data", "tensor")
  table = 4 * llm.vocab_size * llm.width / _size(mesh, "data", "tensor")
  work = run.item * (stored + widest + gathered) + logits + table
  return need.total + MARGIN * work


def _rows(run, mesh):
  config = run.config
  return config.input.batch_size / config.microbatches / _size(mesh, "replica", "data")


def _layer_size(run):
  """Parameters of a layer of the text tower."""
  own = [a for n, a in run.leaves.shapes.items() if n.startswith("llm/layers/")]
  return sum(a.size for a in own) / run.model.llm_config.depth


class Parts(NamedTuple):
  """Seconds of a device: of kernels (products, state), and of what it sends."""

  products: float
  moved: float
  weights: float
  activations: float

  @property
  def kernels(self) -> float:
    """Of products and the state's traffic."""
    return self.products + self.moved

  @property
  def waited(self) -> float:
    """Of what is sent while no kernel runs."""
    return EXPOSED * self.weights + self.activations


def parts_of(run: Run, mesh: Mapping[str, int], cluster: Any) -> Parts:
  """Of a step on a mesh."""
  products = (
    run.flops * RECOMPUTED / _size(mesh, *mesh) / (cluster.gpu.flops(run.config.dtype) * MFU)
  )
  moved = 3 * (memory.tree_bytes(run.state)) / cluster.gpu.bandwidth
  return Parts(products, moved, _weights(run, mesh, cluster), _activations(run, mesh, cluster))


def seconds_of(run: Run, mesh: Mapping[str, int], cluster: Any) -> float:
  """Products, then what is sent; some weights travel while products run, activations do not."""
  parts = parts_of(run, mesh, cluster)
  return parts.kernels + parts.waited


def _bandwidth(cluster, devices, apart=1):
  """Of a ring over every `apart`-th of these devices, bytes a second.

  Each member in a host sends by the network adapter of its own.
  """
  inside, in_a_host = cluster.gpu.link_bandwidth, max(1, cluster.devices_a_host // apart)
  if devices > cluster.devices_a_host:
    inside = min(inside, cluster.network * in_a_host)
  return interconnects.REACHED * inside


def _weights(run, mesh, cluster):
  """Gathering sharded weights for every layer, and reducing gradients."""
  flat = param_tree.flatten(run.state.params)
  used = trained = 0.0
  for name, leaf in flat.items():
    if name.startswith(("llm/embedder",)):
      continue  # Not gathered: its tokens are.
    size = min(run.item, leaf.dtype.itemsize) * math.prod(leaf.shape) / mesh["tensor"]
    used += size if _is_sharded(leaf) else 0.0
    trained += size if name in run.trained else 0.0
  inner = _size(mesh, "tensor", "sequence")
  shards = _size(mesh, "data", "sequence")
  bandwidth = _bandwidth(cluster, inner * mesh["data"], mesh["tensor"])
  share = (shards - 1) / shards
  times = run.config.microbatches
  seconds = times * share * (2 * used + trained) / bandwidth
  replicas = mesh["replica"]
  if replicas > 1:
    outer = _bandwidth(cluster, inner * mesh["data"] * replicas, inner * mesh["data"])
    seconds += times * 2 * trained / shards * (replicas - 1) / replicas / outer
  layers = run.model.llm_config.depth + run.model.img_config.depth
  return seconds + (times * 3 * layers * LATENCY if shards > 1 else 0.0)


def _is_sharded(leaf):
  axes = [a if isinstance(a, str) else "+".join(a or ()) for a in leaf.sharding.spec]
  return any(a not in ("", "tensor") for a in axes)


def _activations(run, mesh, cluster):
  """What `tensor` reduces and `sequence` gathers, forwards, recomputed and backwards."""
  img, llm, times = run.model.img_config, run.model.llm_config, run.config.microbatches
  of_image, of_text = run.tokens(mesh)
  tensor, sequence = mesh["tensor"], mesh["sequence"]
  seconds = 0.0
  if tensor > 1:
    reduced = 6 * run.item * (of_text * llm.width * llm.depth + of_image * img.width * img.depth)
    seconds += 2 * reduced * (tensor - 1) / tensor / _bandwidth(cluster, tensor)
    seconds += 6 * (llm.depth + img.depth) * LATENCY
  if sequence > 1:
    kv = 2 * llm.num_kv_heads * llm.head_dim / min(tensor, llm.num_kv_heads)
    gathered = of_text * kv * llm.depth + of_image * 2 * img.width / tensor * img.depth
    gathered *= 4 * run.item * (sequence - 1)
    seconds += gathered / _bandwidth(cluster, tensor * sequence, tensor)
    seconds += 6 * (llm.depth + img.depth) * LATENCY
  return times * seconds
