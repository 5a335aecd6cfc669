"""Initial weights of a run, as `config.model_init` names them."""

from collections.abc import Mapping
from typing import Any

from pgjax.checkpoints import load as load_params, resolve, source as source_lib
from pgjax.errors import UserError
from pgjax.formats import npz
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import peft
from pgjax.params.lazy import Adapter
from pgjax.params.storage import StoredParams


def load_initial(
  model_init: str | Mapping[str, str], kept: Mapping[str, Any], leaves: StoredParams
) -> dict[str, Any]:
  """The parameters that a run starts from, nested, cast and placed; see loading.load.

  Args:
    model_init: a CKPT, or "x.npz:img" for a part of a file, or a dict from the parts of the model
      to such strings; parts that it leaves out are not returned.
    kept: nested dict of what the run keeps, with shapes, dtypes and shardings.
    leaves: the model's own shapes, and how each is kept.
  """
  if isinstance(model_init, str):
    if peft.is_folder(path := resolve.resolve(resolve.name_and_part(model_init)[0])):
      peft.check_start(path, model_init, leaves)
    found, adapters = _leaves_of(model_init)
    return load_params.load(found, kept, leaves, model_init, adapters)
  parts = {name.split("/")[0] for name in leaves.shapes}
  if unknown := sorted(set(model_init) - parts):
    raise UserError(f"model_init has no part {unknown}; the model has {sorted(parts)}.")
  found, adapters = {}, {}
  for part, spec in model_init.items():
    there, adapted = _leaves_of(spec)  # Of the part alone, or of a whole model.
    found |= {f"{part}/{name}": leaf for name, leaf in (_inside(there, part) or there).items()}
    adapters |= {f"{part}/{name}": leaf for name, leaf in _inside(adapted, part).items()}
  inside = StoredParams(
    *({n: x for n, x in d.items() if n.split("/")[0] in model_init} for d in leaves)
  )
  return load_params.load(found, kept, inside, ", ".join(model_init.values()), adapters)


def _leaves_of(spec: str) -> tuple[dict[str, LazyArray], dict[str, Adapter]]:
  """What one string of model_init names, under the names it has in there, and its adapters."""
  name, part = resolve.name_and_part(spec)
  path = resolve.resolve(name)
  if path.suffix == ".npz":
    leaves, adapters = npz.read_npz(path), {}
  else:
    source = source_lib.open_source(name)
    leaves, adapters = source.leaves, source.adapters
  if part and not _inside(leaves, part):
    tops = sorted({name.split("/")[0] for name in leaves})
    raise UserError(f"model_init='{spec}': the file has no part '{part}', but {tops}.")
  return (_inside(leaves, part), _inside(adapters, part)) if part else (leaves, adapters)


def _inside(leaves: Mapping[str, Any], part: str) -> dict[str, Any]:
  start = f"{part}/"
  return {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}
