"""What becomes of a checkpoint's adapters: full weights with them added, or PEFT's folder?

A run with LoRA keeps a base, factors beside it, and perhaps leaves that were trained themselves;
PEFT's folder keeps all but the base. Sums are formed in float32 as they are read, a layer at a
time. How one adapter is added says params/lazy.py, how PEFT writes it huggingface/peft.py.
"""

import pathlib

from pgjax.checkpoints import resolve, source as source_lib
from pgjax.checkpoints.source import Source
from pgjax.errors import UserError
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import names as hf_names, peft
from pgjax.models import paligemma
from pgjax.params import lazy, rules as param_rules, storage


def folded(source: Source, base: str | None = None) -> Source:
  """The same without adapters, and notes on what was added to what.

  Args:
    source: a checkpoint with adapters.
    base: a CKPT to add them to, instead of what they were trained on as the checkpoint has it.
  """
  leaves, below = source.leaves, _own_base(source)
  if base and source.folder is None:
    leaves, below = _on(source_lib.open_source(base), source), base
  sums = {n: lazy.merge_adapter(n, leaves[n], adapter) for n, adapter in source.adapters.items()}
  notes = [
    *source.notes,
    f"The adapters of {len(sums)} arrays are added to {below}; the sums are float32.",
    *([f"Trained themselves: {', '.join(sorted(whole))}."] if (whole := trained(source)) else []),
  ]
  return source._replace(leaves={**leaves, **sums}, adapters={}, notes=tuple(notes))


def folder_of(source: Source, base: str | None = None) -> peft.Folder:
  """What PEFT's folder will hold; `base` is the model to name in it, if not the run's own."""
  if source.folder:
    return source.folder
  names = trained(source)
  if any(name.startswith(peft.CONNECTOR) for name in names):  # PEFT keeps the whole module.
    names |= {name for name in source.leaves if name.startswith(peft.CONNECTOR)}
  whole = {name: source.leaves[name] for name in sorted(names - source.adapters.keys())}
  folder = peft.Folder(dict(source.adapters), whole, base or _started_from(source))
  peft.check_faithful(folder)
  return folder


def _started_from(source: Source) -> str | None:
  """The model below a run's adapters; None if no checkpoint is that."""
  name = source.run.config["model_init"]
  if not isinstance(name, str):
    return None
  if not pathlib.Path(name).expanduser().is_dir():
    return resolve.hub_id(name)
  before = source_lib.open_source(name)
  if not before.adapters:
    return name
  if before.adapters.keys() != source.adapters.keys():  # They were folded in when the run began.
    return None
  return before.folder.base if before.folder else _started_from(before)


def notes_of(source: Source, folder: peft.Folder) -> list[str]:
  """What a user of the folder should know."""
  notes = []
  if folder.base is None:
    notes.append("It does not say which model it belongs to: --base=CKPT writes that into it.")
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
  """config.params that fits full weights, where the run's own speaks of adapters or of codes."""
  patterns = source.run.config["params"]
  rules = [param_rules.parse_spec(spec) for _, spec in patterns]
  kept_plainly = all(r.kind != "lora" and not storage.scheme_of(r) for r in rules)
  return patterns if kept_plainly else [[".*", "train"]]


def trained(source: Source) -> set[str]:
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
    return f"the run's own base as it was kept, in {kinds} (--base=CKPT takes the unquantized one)"
  return "the run's own base"


def _on(base: Source, source: Source) -> dict[str, LazyArray]:
  """The leaves of another base, and those that the run trained."""
  if base.adapters:
    raise UserError(f"--base={base.name} has adapters itself: merge those first.")
  have, want = ({n: a.shape for n, a in s.leaves.items()} for s in (base, source))
  hf_names.check_same(want, have, f"'{base.name}'", fits=_fits)
  return base.leaves | {name: source.leaves[name] for name in trained(source)}


def _fits(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
  """Token tables may differ in the rows that only Hugging Face has."""
  return have[1:] == want[1:] if name == paligemma.TOKEN_TABLE else have == want
