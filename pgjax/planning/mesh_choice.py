"""Which mesh suits a run on these devices? What `config.mesh="auto"` becomes.

Every mesh that the run allows is compared by its bytes and seconds: here by an estimate from shapes
and link rates, in a second; another `cost` may compile each of them.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh

from pgjax.config import load as config_load, mesh_spec
from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.models import paligemma
from pgjax.params import of_model, rules as param_rules
from pgjax.planning import compiler, flops, gpus, mesh_cost
from pgjax.training import optimizer, state as train_state

log = logging.getLogger("pgjax")

SAME = 1.03  # Meshes whose times differ by less are equally fast: the simplest is taken.


class Cluster(NamedTuple):
  """The devices of a run."""

  num_devices: int
  devices_a_host: int
  gpu: gpus.Gpu
  limit_bytes: float | None  # Of one device; None: unknown.
  network: float = 50e9  # Bytes a second between hosts, a device: InfiniBand of 400 Gb/s each.


class Candidate(NamedTuple):
  """One mesh with its cost."""

  mesh: dict[str, int]
  bytes: float
  seconds: float


class Choice(NamedTuple):
  """The mesh, as config.mesh and config.sharding_strategy, and the reason in a sentence."""

  mesh: list[tuple[str, int]]
  sharding_strategy: list[tuple[str, str]]
  why: str
  candidates: list[Candidate]  # The fastest first; those that do not fit last.


Cost = Callable[[Any, Mapping[str, int]], tuple[float, float]]  # (config, mesh): bytes, seconds.


def resolved(config: Any, devices: list[Any]) -> Any:
  """The config, with the mesh that suits these devices in place of "auto"."""
  if config.mesh != mesh_spec.AUTO:
    return config
  gpu = gpus.of_kind(devices[0].device_kind)
  limits = filter(None, processes.gather_objects(mesh_lib.memory_limit_of(devices)))
  limit = min(limits, default=None)
  cluster = Cluster(len(devices), mesh_lib.devices_a_host(devices), gpu or gpus.GPUS["H100"], limit)
  choice = choose(config, cluster)
  log.info("%s", choice.why)
  return with_mesh(config, choice)


def on(
  config: Any,
  num_devices: int,
  gpu: gpus.Gpu,
  limit_bytes: float | None,
  say: Callable[[str], Any] = lambda why: None,
  hosts: int = 1,
  network: float | None = None,
) -> Any:
  """The same for GPUs that need not exist; network: as in Cluster. `say` gets the reason."""
  if config.mesh != mesh_spec.AUTO:
    return config
  cluster = Cluster(num_devices, num_devices // hosts, gpu, limit_bytes)
  choice = choose(config, cluster._replace(network=network) if network else cluster)
  say(choice.why)
  return with_mesh(config, choice)


def with_mesh(config: Any, choice: Choice) -> Any:
  """A locked copy of the config with that mesh."""
  fields = dict(mesh=choice.mesh, sharding_strategy=choice.sharding_strategy)
  return config_load.overridden(config, fields).lock()


def choose(config: Any, cluster: Cluster, cost: Cost | None = None) -> Choice:
  """The fastest mesh that fits, or, if none does, the one that needs the least memory."""
  cost = cost or estimate(config, cluster)
  all_ = [Candidate(mesh, *cost(config, mesh)) for mesh in meshes(config, cluster)]
  limit = cluster.limit_bytes or math.inf
  fitting = sorted((c for c in all_ if c.bytes <= limit), key=lambda c: c.seconds)
  rest = sorted((c for c in all_ if c.bytes > limit), key=lambda c: c.bytes)
  if fitting:
    near = [c for c in fitting if c.seconds <= SAME * fitting[0].seconds]
    best = min(near, key=lambda c: (_complexity(c.mesh), c.seconds))
  else:
    best = rest[0]
  mesh = [(axis, size) for axis, size in best.mesh.items() if size > 1 or axis == "data"]
  why = _why(config, cluster, best, fitting)
  return Choice(mesh, strategy(config, best.mesh), why, fitting + rest)


def strategy(config: Any, mesh: Mapping[str, int]) -> list[tuple[str, str]]:
  """The config's own; the default one also shards weights over `sequence`."""
  common = config_load.shared("common")
  own = [tuple(pair) for pair in config.sharding_strategy]
  is_default = own == common.base().sharding_strategy
  preset = "sequence" if is_default and mesh.get("sequence", 1) > 1 else None
  return common.STRATEGIES[preset]["sharding_strategy"] if preset else own


def meshes(config: Any, cluster: Cluster) -> Iterator[dict[str, int]]:
  """The meshes that divide batch, heads and tokens; tensor stays inside a host."""
  model = paligemma.Model(**config.model)
  llm, img = model.llm_config, model.img_config
  patches = (config.res // img.patch_size[0]) * (config.res // img.patch_size[1])
  n, host = cluster.num_devices, cluster.devices_a_host
  groups = config.input.batch_size // config.microbatches
  for tensor in _divisors(math.gcd(host, llm.num_heads, img.num_heads)):
    for sequence in _divisors(math.gcd(n // tensor, patches)):
      rest = n // tensor // sequence
      if groups % rest == 0:
        inside = max(1, host // (tensor * sequence))
        for data in dict.fromkeys((rest, inside) if rest % inside == 0 else (rest,)):
          yield dict(replica=rest // data, data=data, tensor=tensor, sequence=sequence)


def estimate(
  config: Any,
  cluster: Cluster,
  seconds_of: Callable[[Any, Mapping[str, int], Any], float] = mesh_cost.seconds_of,
) -> Cost:
  """A cost function that compiles nothing."""
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  trained = of_model.trained_shapes(model, config)
  examples = compiler.EPOCH_STEPS * config.input.batch_size
  tx = optimizer.make(config, compiler.STEPS, trained, num_examples=examples)
  work = flops.of_step(config, model, leaves)
  names = frozenset(param_rules.trained_names(leaves.rules))

  def cost(config, mesh):
    abstract = AbstractMesh(tuple(mesh.values()), tuple(mesh))
    changed = config_load.overridden(
      config, dict(sharding_strategy=strategy(config, mesh), opt_state_memory="device")
    )
    state = train_state.abstract_state(model, tx, changed, abstract)
    batch = compiler.abstract_batch(config, abstract)
    run = mesh_cost.Run(config, model, leaves, state, batch, names, work)
    return mesh_cost.bytes_of(run, mesh), seconds_of(run, mesh, cluster)

  return cost


def _why(config, cluster, best, fitting) -> str:
  axes = ", ".join(f"{axis}={size}" for axis, size in best.mesh.items() if size > 1) or "one device"
  text = f'config.mesh="auto" is {axes}: by estimate {best.seconds:.3g} s a step'
  text += f" and {best.bytes / 1e9:.1f} GB a device"
  text += f" of {cluster.limit_bytes / 1e9:.1f}" if cluster.limit_bytes else ""
  if not fitting:
    return f"{text}; no mesh of {cluster.num_devices} devices fits, and this one needs the least."
  reasons = []
  if config.input.batch_size // config.microbatches < cluster.num_devices:
    reasons.append(f"a batch of {config.input.batch_size} is smaller than the number of devices")
  others = [c for c in fitting if c is not best]
  if others and best is fitting[0]:
    reasons.append(f"the next best is {others[0].seconds / best.seconds:.2f} x as slow")
  elif others:
    reasons.append("no more complex mesh is much faster")
  return f"{text}{'; ' if reasons else ''}{', and '.join(reasons)}."


def _complexity(mesh: Mapping[str, int]) -> int:
  weight = dict(data=0, replica=1, sequence=2, tensor=3)
  return sum(weight[axis] for axis, size in mesh.items() if size > 1)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
