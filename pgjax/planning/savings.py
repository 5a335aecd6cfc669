"""What would make a run smaller, by about how much, and at what cost?

Estimates from shapes, nothing compiled: for the answer to a device that is out of memory, and for
pgjax.plan --suggest, which compiles what looks promising. Bytes are of one device.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pgjax.config import load as config_load, validate as config_validate
from pgjax.errors import UserError
from pgjax.layers import remat
from pgjax.models.paligemma import Model
from pgjax.params import rules as param_rules, tree as param_tree
from pgjax.params.storage import StoredParams
from pgjax.planning import memory
from pgjax.planning.memory import Need
from pgjax.training import optimizer

HOST_BANDWIDTH = 25e9  # Bytes a second between a GPU and its host, over PCIe 4 with 16 lanes.
WORTH = 0.02  # Of what a step takes; below that a switch is not named.


class Saving(NamedTuple):
  """One thing to change."""

  overrides: dict[str, str]  # {"microbatches": "4"}, for --config.microbatches=4.
  saves: int
  cost: str


class PlannedRun(NamedTuple):
  """What the estimates are made from."""

  config: Any
  model: Model
  leaves: StoredParams
  need: Need
  num_devices: int

  @property
  def rows(self) -> int:
    """Examples that a device has in memory at once."""
    return max(1, self.config.input.batch_size // self.num_devices // self.config.microbatches)

  @property
  def tokens(self) -> tuple[int, int]:
    """Of the image tower and of the text tower, on a device, at once."""
    patch = self.model.img_config.patch_size
    patches = (self.config.res // patch[0]) * (self.config.res // patch[1])
    images = self.rows * max(1, self.config.num_frames)
    return images * patches, images * patches + self.rows * self.config.text_len

  def kept_bytes(self, wanted: Callable[[str, Any], bool]) -> int:
    """Of the kept arrays (name, shape) that are wanted: their share of what a device keeps."""
    kept = param_tree.flatten(self.leaves.abstract())
    sizes = {name: math.prod(a.shape) * a.dtype.itemsize for name, a in kept.items()}
    share = sum(size for name, size in sizes.items() if wanted(name, kept[name]))
    return round(share / sum(sizes.values()) * (sum(self.need[:3])))


def cheapest(run: PlannedRun, excess_bytes: int | None = None, most: int = 3) -> list[Saving]:
  """The cheapest that help; if they cannot close the gap, the last is the one that saves most."""
  found = [s for make in _BY_COST if (s := make(run)) and s.saves > WORTH * run.need.step]
  chosen = found[:most]
  if excess_bytes and sum(s.saves for s in chosen) < excess_bytes and len(found) > most:
    largest = max(found[most - 1 :], key=lambda s: s.saves)
    chosen = [*chosen[:-1], largest]
  return chosen


def lines(switches: list[Saving]) -> str:
  """A line each, as flags to paste."""
  rows = [(flags(s.overrides), f"about {s.saves / 1e9:.1f} GB less", s.cost) for s in switches]
  width = max((len(row[0]) for row in rows), default=0)
  return "\n".join(f"  {flag:<{width}}  {saves}; {cost}" for flag, saves, cost in rows)


def flags(overrides: Mapping[str, str]) -> str:
  """As a shell takes them."""
  return " ".join(shlex.quote(f"--config.{name}={value}") for name, value in overrides.items())


def _frozen_storage(run: PlannedRun) -> Saving | None:
  """Frozen leaves that are kept wider than bfloat16."""
  wide = run.kept_bytes(
    lambda name, leaf: (
      memory.part_of(name, run.leaves.rules) == "frozen"
      and str(leaf.dtype) == "float32"
      and name in run.leaves.shapes
    )
  )
  patterns = [(p, _narrow(spec)) for p, spec in run.config.params]
  cost = "what is frozen is rounded to bfloat16 once, at the start"
  return Saving({"params": json.dumps(patterns)}, wide // 2, cost)


def _narrow(spec: str) -> str:
  """`freeze` in whatever dtype, in bfloat16; the base of an adapter too."""
  rule = param_rules.parse_spec(spec)
  if rule.dtype in param_rules.QUANTIZED or rule.kind == "train":
    return spec
  return 'freeze("bfloat16")' if rule.kind == "freeze" else spec


def _microbatches(run: PlannedRun) -> Saving | None:
  """Four times as many, or twice."""
  rows = run.config.input.batch_size // run.num_devices
  now = run.config.microbatches
  more = next((now * n for n in (4, 2) if rows % (now * n) == 0), None)
  if more is None:
    return None
  # Measured on the 3B: 0.5 to 0.7 of the workspace goes with the batch; and while the parts are
  # added up, there are two sets of gradients.
  saved = 0.8 * (run.need.workspace - run.need.logits) * (1 - now / more)
  second = run.need.gradients if now == 1 else 0
  again = "; each part gathers the weights again" if run.num_devices > 1 else ""
  return Saving(
    {"microbatches": str(more)}, round(saved) - second, f"the same numbers, a little slower{again}"
  )


def _remat(run: PlannedRun) -> Saving | None:
  """The least that a layer can keep."""
  config = run.config
  policy = remat.chosen(config.remat, config.dtype, run.num_devices)
  if policy == "least_memory":
    return None
  return Saving(
    {"remat": "least_memory"}, _kept_bytes(run, policy), "the same numbers, about 10% slower"
  )


def _kept_bytes(run: PlannedRun, policy: str) -> int:
  """What all layers keep by a policy, beyond their inputs."""
  img, llm = run.model.img_config, run.model.llm_config
  of_image, of_text = run.tokens
  heads = llm.num_heads * llm.head_dim
  if policy.startswith("mlp_out"):
    text, image = llm.width, 0
  elif policy == "attention_saveable":
    text, image = heads, img.width
  elif policy in ("products_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable", "none"):
    text = 2 * heads + 2 * llm.num_kv_heads * llm.head_dim + 2 * llm.width + 2 * llm.mlp_dim
    image = 5 * img.width + img.mlp_dim
  else:
    text = image = 0
  width = 2 if run.config.dtype == "bfloat16" else 4
  return width * (llm.depth * of_text * text + img.depth * of_image * image)


def _compute_dtype(run: PlannedRun) -> Saving | None:
  """Half of what is made on the way."""
  if run.config.dtype == "bfloat16":
    return None
  cost = "products and activations in bfloat16, what trains stays in float32; faster"
  return Saving({"dtype": "bfloat16"}, run.need.temporaries // 2, cost)


def _moments(run: PlannedRun) -> Saving | None:
  """Adam's moments in a byte each, or the first of them in two."""
  if run.config.optax_name not in ("scale_by_adam", "adam", "adamw"):
    return None
  eight_bit = {"optax_name": "pgjax.adam8bit"}
  if _accepted(run, eight_bit):
    cost = "Adam's moments in 8 bits; the loss is all but the same"
    # A quarter of the bytes, and 3 GB more on the way (3B, compiled for an H200).
    return Saving(eight_bit, round(0.6 * run.need.optimizer), cost)
  if "mu_dtype" in run.config.optax:
    return None
  cost = "Adam's first moment in bfloat16; the loss is all but the same"
  return Saving({"optax.mu_dtype": "bfloat16"}, run.need.optimizer // 4, cost)


def _host_state(run: PlannedRun) -> Saving | None:
  """The optimizer's state in the host's memory between steps."""
  overrides = {"opt_state_memory": "host"}
  if not _accepted(run, overrides):
    return None
  seconds = 2 * run.need.optimizer / HOST_BANDWIDTH
  return Saving(
    overrides, run.need.optimizer, f"the same numbers, about {seconds:.1f} s more a step"
  )


def _accepted(run: PlannedRun, overrides: Mapping[str, str]) -> bool:
  """Whether this run's config can be changed so."""
  try:
    changed = config_validate.validated(config_load.overridden(run.config, overrides))
    names = param_rules.trained_names(run.leaves.rules)
    optimizer.make(changed, 10**9, names, num_examples=1000 * changed.input.batch_size)
  except UserError:
    return False
  return changed.to_dict() != run.config.to_dict()


def _freeze_vision(run: PlannedRun) -> Saving | None:
  """No gradients and no state for the image tower."""
  patterns = [tuple(pair) for pair in run.config.params]
  if patterns != [(".*", "train")]:
    return None
  size = run.kept_bytes(lambda name, _: name.startswith("img/") and "img/head" not in name)
  share = size / max(1, run.need.trained)
  saved = size / 2 + share * (run.need.optimizer + run.need.gradients)
  frozen = [("img/head/.*", "train"), ("img/.*", 'freeze("bfloat16")'), ("llm/.*", "train")]
  return Saving(
    {"params": json.dumps(frozen)}, round(saved), "another run: the image tower stays as it is"
  )


def _adapters(run: PlannedRun) -> Saving | None:
  """LoRA on the text tower, everything else frozen in bfloat16."""
  if any(rule.kind == "lora" for rule in run.leaves.rules.values()):
    return None
  saved = run.need.trained // 2 + run.need.optimizer + run.need.gradients
  return Saving(
    adapters(run.config, "bfloat16"), saved, "another method: adapters of rank 8 (LoRA)"
  )


def adapters(config: Any, base: str) -> dict[str, str]:
  """What tune=lora and tune=qlora set, for a run that trains something else or adapters already."""
  if any("lora" in spec for _, spec in config.params):
    specs = [(p, re.sub(r'base="\w+"', f'base="{base}"', spec)) for p, spec in config.params]
    return {"params": json.dumps(specs)}
  patterns = [("llm/layers/(attn|mlp)/.*", f'lora(rank=8, alpha=16, base="{base}")')]
  if base in param_rules.QUANTIZED:
    patterns += [("img/.*/kernel", f'freeze("{base}")')]
  patterns += [(".*", 'freeze("bfloat16")')]
  return {"params": json.dumps(patterns), "lr": f"{10 * config.lr:g}", "wd": "0.0"}


def _quantized(run: PlannedRun) -> Saving | None:
  """The base of adapters in four bits."""
  based = {n for n, rule in run.leaves.rules.items() if rule.kind == "lora"}
  wide = {n for n in based if run.leaves.rules[n].dtype not in param_rules.QUANTIZED}
  if not wide:
    return None
  size = run.kept_bytes(lambda name, _: name in wide)
  cost = "the frozen matrices in four bits (QLoRA), a little slower"
  return Saving(adapters(run.config, "nf4"), round(0.72 * size), cost)


def _smaller_batch(run: PlannedRun) -> Saving | None:
  """Half of it: when all else has been said."""
  batch_size = run.config.input.batch_size
  if batch_size % (2 * run.num_devices * run.config.microbatches):
    return None
  saved = round(0.4 * (run.need.workspace - run.need.logits))
  return Saving({"input.batch_size": str(batch_size // 2)}, saved, "another run: half the batch")


def of_other_runs(run: PlannedRun) -> list[Saving]:
  """What changes the run and not its method, the cheapest first, and can be compiled anywhere."""
  makers = (_compute_dtype, _remat, _frozen_storage, _moments, _freeze_vision)
  made = (make(run) for make in makers)
  return [switch for switch in made if switch and switch.saves > WORTH * run.need.step]


# From what changes nothing to what is another run.
_BY_COST: tuple[Callable[[PlannedRun], Saving | None], ...] = (
  _compute_dtype,
  _microbatches,
  _remat,
  _frozen_storage,
  _moments,
  _host_state,
  _quantized,
  _freeze_vision,
  _smaller_batch,
  _adapters,
)
