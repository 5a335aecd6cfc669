"""Merges a checkpoint's adapters into full weights, or collects them for PEFT's folder.

A run with LoRA stores a base, factors, and perhaps fully trained leaves; PEFT's folder has all but
the base. Sums are float32, computed as they are read (params/lazy.py).
"""

import pathlib

from pgjax.checkpoints import resolve, source as source_lib
from pgjax.checkpoints.source import Source
from pgjax.config import model_init as model_init_lib
from pgjax.errors import UserError
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import names as hf_names, peft
from pgjax.models import paligemma
from pgjax.params import lazy, rules as param_rules, storage


def merged(source: Source, base: str | None = None) -> Source:
  """The checkpoint with its adapters merged, and notes about that.

  base: a CKPT to merge them into, instead of the base that the checkpoint has.
  """
  leaves, name = source.leaves, _own_base(source)
  if base and source.folder is None:
    leaves, name = _on(source_lib.open_source(base), source), base
  sums = {n: lazy.merge_adapter(n, leaves[n], adapter) for n, adapter in source.adapters.items()}
  notes = [f"The adapters of {len(sums)} arrays are added to {name}; the sums are float32."]
  if whole := _trained(source):
    notes.append(f"Fully trained: {', '.join(sorted(whole))}.")
  return source._replace(leaves={**leaves, **sums}, adapters={}, notes=(*source.notes, *notes))


def folder_of(source: Source, base: str | None = None) -> peft.Folder:
  """The content of PEFT's folder; `base` is the model that it names, if not the run's own."""
  if source.folder:
    return source.folder
  names = _trained(source)
  if any(name.startswith(peft.CONNECTOR) for name in names):  # PEFT stores the whole module.
    names |= {name for name in source.leaves if name.startswith(peft.CONNECTOR)}
  whole = {name: source.leaves[name] for name in sorted(names - source.adapters.keys())}
  folder = peft.Folder(dict(source.adapters), whole, base or _started_from(source))
  peft.check_faithful(folder)
  return folder


def _started_from(source: Source) -> str | None:
  """The base model of a run's adapters; None if no checkpoint holds it."""
  if not isinstance(text := source.run.config["model_init"], str):
    return None
  spec = model_init_lib.parse(text)
  if not pathlib.Path(spec.name).expanduser().is_dir():
    return resolve.hub_id(spec.name)
  initial = source_lib.open_source(spec.name, spec.step, spec.base, weights=spec.weights)
  if not initial.adapters:
    return spec.name
  if initial.adapters.keys() != source.adapters.keys():  # The run merged them when it started.
    return None
  return initial.folder.base if initial.folder else _started_from(initial)


def notes_of(source: Source, folder: peft.Folder) -> list[str]:
  """Notes for users of PEFT's folder."""
  notes = []
  if folder.base is None:
    notes.append("The folder does not name its base model: --base=CKPT writes the name into it.")
  if source.run and (kinds := _quantized(source)):
    notes.append(
      f"The base was {kinds} while the adapters were trained: on the unquantized one they answer a"
      " little differently."
    )
  dropouts = sorted({adapter.rule.dropout for adapter in folder.adapters.values()})
  if len(dropouts) > 1:
    notes.append(
      f"lora_dropout is {dropouts[-1]}, the largest of {dropouts}: PEFT has one for all."
    )
  return notes


def decoded_params(source: Source) -> list[list[str]] | None:
  """config.params for full weights: the run's own, unless it has adapters or quantization."""
  patterns = source.run.config["params"]
  rules = [param_rules.parse_spec(spec) for _, spec in patterns]
  plain = all(rule.kind != "lora" and not storage.scheme_of(rule) for rule in rules)
  return patterns if plain else [[".*", "train"]]


def _trained(source: Source) -> set[str]:
  """Names of the leaves that a checkpoint with adapters has instead of the base's."""
  if source.folder:
    return set(source.folder.whole)
  return {name for name, rule in _rules(source).items() if rule.kind == "train"}


def _rules(source: Source) -> dict[str, param_rules.Rule]:
  return param_rules.rules(source.run.config["params"], source.leaves)


def _quantized(source: Source) -> str:
  """ "nf4" or the like; empty if nothing below the adapters is quantized."""
  schemes = [storage.scheme_of(_rules(source)[name]) for name in source.adapters]
  return " and ".join(sorted({scheme.kind for scheme in schemes if scheme}))


def _own_base(source: Source) -> str:
  if source.folder:
    return f"{source.folder.base}"
  if kinds := _quantized(source):
    return f"the run's own base as stored, in {kinds} (--base=CKPT takes the unquantized one)"
  return "the run's own base"


def _on(base: Source, source: Source) -> dict[str, LazyArray]:
  """The leaves of another base, and those that the run trained."""
  if base.adapters:
    raise UserError(f"--base={base.name} has adapters itself: merge those first.")

  def fits(name, have, want):  # Token tables may differ in the rows that only Hugging Face has.
    return have[1:] == want[1:] if name == paligemma.TOKEN_TABLE else have == want

  have, want = ({n: a.shape for n, a in s.leaves.items()} for s in (base, source))
  hf_names.check_same(want, have, f"'{base.name}'", fits=fits)
  return base.leaves | {name: source.leaves[name] for name in _trained(source)}
