"""Initial weights of a run, as `config.model_init` names them."""

from collections.abc import Callable, Mapping
from typing import Any

from pgjax.checkpoints import load as load_params, resolve, source as source_lib
from pgjax.checkpoints.orbax_items import under
from pgjax.config import model_init as model_init_lib
from pgjax.errors import UserError, naming
from pgjax.formats import npz
from pgjax.formats.lazy_array import LazyArray
from pgjax.huggingface import peft
from pgjax.params.lazy import Adapter
from pgjax.params.storage import StoredParams


def needs_download(model_init: str | Mapping[str, str] | None) -> bool:
  """Whether a part of it is not on this machine; raises for names that are no checkpoint."""
  specs = [model_init] if isinstance(model_init, str) else (model_init or {}).values()
  with naming("config.model_init"):
    return any(source_lib.needs_download(s.name, s.base) for s in map(model_init_lib.parse, specs))


def load_initial(*args: Any) -> dict[str, Any]:
  """Checks and reads at once; see `checked`."""
  return checked(*args)()


def checked(
  model_init: str | Mapping[str, str], abstract: Mapping[str, Any], leaves: StoredParams
) -> Callable[[], dict[str, Any]]:
  """Opens and checks the parameters that a run starts from; the result reads them.

  It returns them nested, cast and placed; see load.checked.

  model_init: a CKPT, "x.npz:img" for a part of a file, ckpt("CKPT", base="...") with choices
  (config/model_init.py), or a dict from parts of the model to such strings; parts that it leaves
  out are not returned.
  """
  if isinstance(model_init, str):
    spec, dtype = model_init_lib.parse(model_init), _dtype(leaves)
    path = resolve.resolve(spec.name, dtype=dtype)
    if peft.is_folder(path) and spec.weights in (None, peft.FILE):  # Before its base is opened.
      peft.check_start(path, model_init, leaves)
    arrays, adapters = _leaves_of(model_init, dtype)
    return load_params.checked(arrays, abstract, leaves, model_init, adapters)
  parts = {name.split("/")[0] for name in leaves.shapes}
  if unknown := sorted(set(model_init) - parts):
    raise UserError(f"model_init has no part {unknown}; the model has {sorted(parts)}.")
  arrays, adapters = {}, {}
  for part, spec in model_init.items():
    of_spec, adapters_of_spec = _leaves_of(spec)  # Of only this part, or of a whole model.
    arrays |= {f"{part}/{n}": leaf for n, leaf in (under(of_spec, part) or of_spec).items()}
    adapters |= {f"{part}/{n}": leaf for n, leaf in under(adapters_of_spec, part).items()}
  inside = StoredParams(
    *({n: x for n, x in d.items() if n.split("/")[0] in model_init} for d in leaves)
  )
  return load_params.checked(arrays, abstract, inside, ", ".join(model_init.values()), adapters)


def _dtype(leaves: StoredParams) -> str | None:
  """The dtype that all parameters are stored in, but for the factors of adapters."""
  dtypes = {rule.dtype or "float32" for rule in leaves.rules.values()}
  return dtypes.pop() if len(dtypes) == 1 else None


def _leaves_of(
  text: str, dtype: str | None = None
) -> tuple[dict[str, LazyArray], dict[str, Adapter]]:
  """The leaves that one string of model_init names, by their names in the file, and adapters."""
  spec = model_init_lib.parse(text)
  path = resolve.resolve(spec.name, dtype=dtype)
  if path.suffix == ".npz" and path.is_file():
    leaves, adapters = npz.read_npz(path), {}
  else:
    source = source_lib.open_source(
      spec.name, spec.step, spec.base, weights=spec.weights, dtype=dtype
    )
    source_lib.check_base(source, spec.base)
    leaves, adapters = source.leaves, source.adapters
  part = spec.part
  if part and not under(leaves, part):
    tops = sorted({name.split("/")[0] for name in leaves})
    raise UserError(f"model_init='{text}': the file has no part '{part}', but {tops}.")
  return (under(leaves, part), under(adapters, part)) if part else (leaves, adapters)
