"""Which switches make a run smaller, by about how much, and at what cost?

Estimates from shapes, without compiling: for out-of-memory errors, and for pgjax.plan --suggest,
which compiles the promising ones. Bytes are of one device.
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
WORTH = 0.02  # Share of a step's bytes below which a switch is not suggested.


class Saving(NamedTuple):
  """One switch."""

  overrides: dict[str, str]  # {"microbatches": "4"}, for --config.microbatches=4.
  saves: int
  cost: str


class PlannedRun(NamedTuple):
  """The run that the estimates are for."""

  config: Any
  model: Model
  leaves: StoredParams
  need: Need
  num_devices: int

  @property
  def rows(self) -> int:
    """Examples in a device's memory at once."""
    return max(1, self.config.input.batch_size // self.num_devices // self.config.microbatches)

  @property
  def tokens(self) -> tuple[int, int]:
    """Tokens of (image tower, text tower) in a device's memory at once."""
    patch = self.model.img_config.patch_size
    patches = (self.config.res // patch[0]) * (self.config.res // patch[1])
    images = self.rows * max(1, self.config.num_frames)
    return images * patches, images * patches + self.rows * self.config.text_len

  def stored_bytes(self, wanted: Callable[[str, Any], bool]) -> int:
    """Bytes on a device of the parameters for which wanted(name, array) is true."""
    stored = param_tree.flatten(self.leaves.abstract())
    sizes = {name: math.prod(a.shape) * a.dtype.itemsize for name, a in stored.items()}
    share = sum(size for name, size in sizes.items() if wanted(name, stored[name]))
    need = self.need
    return round(share / sum(sizes.values()) * (need.trained + need.frozen + need.lora))


def cheapest(run: PlannedRun, excess_bytes: int | None = None, most: int = 3) -> list[Saving]:
  """The cheapest that help; if they cannot close the gap, the last is the one that saves most."""
  switches = _worthwhile(_BY_COST, run)
  if excess_bytes and sum(s.saves for s in switches[:most]) < excess_bytes:
    switches[most - 1 :] = sorted(switches[most - 1 :], key=lambda s: -s.saves)
  return switches[:most]


def _worthwhile(makers, run: PlannedRun) -> list[Saving]:
  return [s for make in makers if (s := make(run)) and s.saves > WORTH * run.need.step]


def lines(switches: list[Saving]) -> str:
  """A line each, with the flags to paste."""
  rows = [(flags(s.overrides), f"about {s.saves / 1e9:.1f} GB less", s.cost) for s in switches]
  width = max((len(row[0]) for row in rows), default=0)
  return "\n".join(f"  {flag:<{width}}  {saves}; {cost}" for flag, saves, cost in rows)


def flags(overrides: Mapping[str, str]) -> str:
  """For a shell."""
  return " ".join(shlex.quote(f"--config.{name}={value}") for name, value in overrides.items())


def _frozen_storage(run: PlannedRun) -> Saving | None:
  """Frozen leaves in bfloat16 instead of float32."""

  def is_wide(name, leaf):
    frozen = memory.part_of(name, run.leaves.rules) == "frozen"
    return frozen and leaf.dtype == "float32" and name in run.leaves.shapes

  def narrow(spec):
    rule = param_rules.parse_spec(spec)
    can_be_narrower = rule.kind == "freeze" and rule.dtype not in param_rules.QUANTIZED
    return 'freeze("bfloat16")' if can_be_narrower else spec

  patterns = [(pattern, narrow(spec)) for pattern, spec in run.config.params]
  cost = "frozen parameters are rounded to bfloat16 once, at the start"
  return Saving({"params": json.dumps(patterns)}, run.stored_bytes(is_wide) // 2, cost)


def _microbatches(run: PlannedRun) -> Saving | None:
  """Four or two times as many."""
  rows = run.config.input.batch_size // run.num_devices
  now = run.config.microbatches
  more = next((now * n for n in (4, 2) if rows % (now * n) == 0), None)
  if more is None:
    return None
  # Measured on the 3B: 0.5 to 0.7 of the workspace is proportional to the batch. Accumulation needs
  # a second set of gradients.
  saved = 0.8 * (run.need.workspace - run.need.logits) * (1 - now / more)
  second = run.need.gradients if now == 1 else 0
  again = "; each part gathers the weights again" if run.num_devices > 1 else ""
  cost = f"the same numbers, a little slower{again}"
  return Saving({"microbatches": str(more)}, round(saved) - second, cost)


def _remat(run: PlannedRun) -> Saving | None:
  """The policy that stores the least."""
  if run.config.remat == remat.AUTO:
    return None  # It was tried.
  policy = remat.chosen(run.config.remat, run.config.dtype, run.num_devices)
  if policy == "least_memory":
    return None
  cost = "the same numbers, about 10% slower"
  return Saving({"remat": "least_memory"}, activation_bytes(run, policy), cost)


def activation_bytes(run: PlannedRun, policy: str) -> int:
  """Activations that a policy stores in all layers, besides their inputs."""
  img, llm = run.model.img_config, run.model.llm_config
  of_image, of_text = run.tokens
  heads = llm.num_heads * llm.head_dim
  text = image = 0
  if policy.startswith("mlp_out"):
    text = llm.width
  elif policy == "attention_saveable":
    text, image = heads, img.width
  elif policy == "outputs_saveable":
    text, image = 2 * heads + llm.width, img.width
  elif policy == "mlp_gate_saveable":
    keys_values = 2 * llm.num_kv_heads * llm.head_dim
    text, image = 2 * heads + keys_values + 2 * llm.width + llm.mlp_dim, img.width
  elif policy in ("products_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable", "none"):
    text = 2 * heads + 2 * llm.num_kv_heads * llm.head_dim + 2 * llm.width + 2 * llm.mlp_dim
    image = 5 * img.width + img.mlp_dim
  width = 2 if run.config.dtype == "bfloat16" else 4
  return width * (llm.depth * of_text * text + img.depth * of_image * image)


def _compute_dtype(run: PlannedRun) -> Saving | None:
  """Temporaries of half the size."""
  if run.config.dtype == "bfloat16":
    return None
  cost = "products and activations in bfloat16, trainable parameters stay in float32; faster"
  return Saving({"dtype": "bfloat16"}, run.need.temporaries // 2, cost)


def _moments(run: PlannedRun) -> Saving | None:
  """Adam's moments in a byte each, or the first moment in two."""
  if run.config.optax_name not in ("scale_by_adam", "adam", "adamw"):
    return None
  eight_bit = {"optax_name": "pgjax.adam8bit"}
  if _accepted(run, eight_bit):
    cost = "Adam's moments in 8 bits; the loss is almost the same"
    # A quarter of the bytes, and 3 GB more of temporaries (3B, compiled for an H200).
    return Saving(eight_bit, round(0.6 * run.need.optimizer), cost)
  if "mu_dtype" in run.config.optax:
    return None
  cost = "Adam's first moment in bfloat16; the loss is almost the same"
  return Saving({"optax.mu_dtype": "bfloat16"}, run.need.optimizer // 4, cost)


def _host_state(run: PlannedRun) -> Saving | None:
  """The optimizer state in the host's memory between steps."""
  overrides = {"opt_state_memory": "host"}
  if not _accepted(run, overrides):
    return None
  seconds = 2 * run.need.optimizer / HOST_BANDWIDTH
  cost = f"the same numbers, about {seconds:.1f} s more a step"
  return Saving(overrides, run.need.optimizer, cost)


def _accepted(run: PlannedRun, overrides: Mapping[str, str]) -> bool:
  """Whether the changed config is valid and different."""
  try:
    changed = config_validate.validated(config_load.overridden(run.config, overrides))
    names = param_rules.trained_names(run.leaves.rules)
    optimizer.make(changed, 10**9, names, num_examples=1000 * changed.input.batch_size)
  except UserError:
    return False
  return changed.to_dict() != run.config.to_dict()


def _freeze_vision(run: PlannedRun) -> Saving | None:
  """No gradients and no optimizer state for the image tower."""
  patterns = [tuple(pair) for pair in run.config.params]
  if patterns != [(".*", "train")]:
    return None
  size = run.stored_bytes(lambda name, _: name.startswith("img/") and "img/head" not in name)
  share = size / max(1, run.need.trained)
  saved = size / 2 + share * (run.need.optimizer + run.need.gradients)
  frozen = [("img/head/.*", "train"), ("img/.*", 'freeze("bfloat16")'), ("llm/.*", "train")]
  cost = "another run: the image tower does not train"
  return Saving({"params": json.dumps(frozen)}, round(saved), cost)


def _adapters(run: PlannedRun) -> Saving | None:
  """LoRA on the text tower, everything else frozen in bfloat16."""
  if any(rule.kind == "lora" for rule in run.leaves.rules.values()):
    return None
  saved = run.need.trained // 2 + run.need.optimizer + run.need.gradients
  cost = "another method: adapters of rank 8 (LoRA)"
  return Saving(adapters(run.config, "bfloat16"), saved, cost)


def adapters(config: Any, base: str) -> dict[str, str]:
  """The overrides for tune=lora or tune=qlora; a run with adapters gets another base only."""
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
  adapted = {n: rule for n, rule in run.leaves.rules.items() if rule.kind == "lora"}
  wide = {n for n, rule in adapted.items() if rule.dtype not in param_rules.QUANTIZED}
  if not wide:
    return None
  size = run.stored_bytes(lambda name, _: name in wide)
  cost = "the frozen matrices in four bits (QLoRA), a little slower"
  return Saving(adapters(run.config, "nf4"), round(0.72 * size), cost)


def _smaller_batch(run: PlannedRun) -> Saving | None:
  """Half of it, as a last resort."""
  batch_size = run.config.input.batch_size
  if batch_size % (2 * run.num_devices * run.config.microbatches):
    return None
  saved = round(0.4 * (run.need.workspace - run.need.logits))
  return Saving({"input.batch_size": str(batch_size // 2)}, saved, "another run: half the batch")


def of_other_runs(run: PlannedRun) -> list[Saving]:
  """Switches of the run but not its method that compile anywhere, the cheapest first."""
  makers = (_compute_dtype, _remat, _frozen_storage, _moments, _freeze_vision)
  return _worthwhile(makers, run)


# From switches that change no number to those that make another run.
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
