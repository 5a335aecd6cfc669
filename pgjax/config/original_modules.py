"""What do config files of big_vision import? Stand-ins, which need no big_vision.

They are used whether big_vision is installed or not, so that a config means the same everywhere.
Its other modules are imported from where it is installed.
"""

import contextlib
import difflib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

TOKENIZER = 'gemma(tokensets=("loc", "seg"))'
_TRANSFERS = "big_vision.configs.proj.paligemma.transfers"
_COMMON, _PACKING = "big_vision.configs.common", f"{_TRANSFERS}.common"


@contextlib.contextmanager
def stand_ins(parse_arg: Callable) -> Iterator[set[str]]:
  """Lets a file import big_vision's configs/common.py and the transfers' common.py.

  `parse_arg` is that of configs/common.py. Yields the names of all arguments that get_config
  parses, which the originals also store in the config.
  """
  arguments: set[str] = set()
  contents = {
    _COMMON: dict(parse_arg=_parser(parse_arg, arguments), arg=_argument, pack_arg=_packed),
    _PACKING: dict(
      combine_and_keep_train=combine_and_keep_train,
      combine_and_keep_eval=combine_and_keep_eval,
      tok=tok,
      TOKENIZER=TOKENIZER,
    ),
  }
  before = _removed()
  folders = _folders("big_vision", None)
  for name in _with_parents(_COMMON, _PACKING):
    parent, _, last = name.rpartition(".")
    sys.modules[name] = module = types.ModuleType(name)
    if name in contents:
      module.__getattr__ = _of_installed(name, folders[parent])
      vars(module).update(contents[name])
    else:
      if name not in folders:
        folders |= _folders(name, folders[parent])
      module.__path__ = folders[name]
    if parent:
      setattr(sys.modules[parent], last, module)
  try:
    yield arguments
  finally:
    _removed()
    sys.modules.update(before)


def _with_parents(*names: str) -> list[str]:
  parts = [name.split(".") for name in names]
  return sorted({".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)})


def _removed() -> dict[str, types.ModuleType]:
  """Takes big_vision and all its modules out of those that are imported."""
  names = [name for name in sys.modules if name.partition(".")[0] == "big_vision"]
  return {name: sys.modules.pop(name) for name in names}


def _folders(name: str, inside: list[str] | None) -> dict[str, list[str]]:
  """{name: the folders of an installed package}, without importing it."""
  if inside is None:
    found = importlib.util.find_spec(name)
  else:
    found = importlib.machinery.PathFinder.find_spec(name, inside) if inside else None
  return {name: list(found.submodule_search_locations or []) if found else []}


def _of_installed(name: str, folders: list[str]) -> Callable[[str], Any]:
  """The module's __getattr__: what a stand-in lacks comes from the installed module, if any."""

  def get(attribute: str) -> Any:
    found = importlib.machinery.PathFinder.find_spec(name, folders) if folders else None
    if attribute.startswith("__") or found is None or found.loader is None:
      raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return getattr(module, attribute)

  return get


def _parser(ours: Callable, arguments: set[str]) -> Callable:
  """big_vision's parse_arg on top of ours.

  A single word without `=` sets the argument of that name to true, and is otherwise the value of
  the first argument; a default may be (value, type); with `lazy` other arguments are taken too.
  """

  def parse_arg(arg: str | None, lazy: bool = False, **spec: Any) -> Any:
    arguments.update(spec)
    types_of = {name: v[1] for name, v in spec.items() if isinstance(v, tuple | list)}
    defaults = {name: v[0] if name in types_of else v for name, v in spec.items()}
    arg = arg or ""
    if arg and spec and not set(",=") & set(arg) and arg not in spec:
      first = next(iter(spec))
      if first == "mode" and (near := difflib.get_close_matches(arg, spec, 1, 0.75)):
        raise ValueError(f"it takes no argument {arg[:80]!r}. Did you mean {near[0]!r}?")
      arg = f"{first}={arg}"
    if lazy or not spec:
      names = [part.partition("=")[0] for part in arg.split(",") if part]
      defaults = dict.fromkeys([name for name in names if name not in defaults], "") | defaults
    parsed = ours(arg, **{n: "" if n in types_of else v for n, v in defaults.items()})
    for name, of_type in types_of.items():
      parsed[name] = of_type(parsed[name]) if parsed[name] != "" else defaults[name]
    for name in parsed if lazy or not spec else ():
      if name not in spec:
        parsed[name] = _value(parsed[name])
    return parsed

  return parse_arg


def _value(text: str) -> bool | int | float | str:
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  for number in (int, float):
    with contextlib.suppress(ValueError):
      return number(text)
  return text


def _packed(**arguments: Any) -> str:
  """`res=224,crop=rs` of arguments."""
  return ",".join(f"{name}={value}" for name, value in arguments.items())


def _argument(**arguments: Any) -> dict[str, Any]:
  return {"config_arg": _packed(**arguments), **arguments}


def tok(**arguments: Any) -> str:
  """The op that turns text into ids, always with the run's tokenizer."""
  arguments = {"model": TOKENIZER} | arguments
  return f"tok({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def combine_and_keep_train(text_len: int, before=(), sep: str = "\n") -> str:
  """Ops that pack prefix, separator and suffix for training (big_vision: transfers/common.py)."""
  ops = (tok(key="prefix", bos="yes"), tok(key="septok", text=sep), tok(key="suffix", eos="yes"))
  joined = 'masked_concat(["prefix", "septok", "suffix"], mask_ar=[0, 0, 1], mask_loss=[0, 0, 1])'
  return _joined((*before, *ops, joined), text_len + 1, dict(text=0, mask_ar=1, mask_loss=0))


def combine_and_keep_eval(text_len: int, keep=(), before=(), sep: str = "\n") -> str:
  """Ops that pack prefix and separator for decoding, and the answer, which big_vision goes on from.

  `big_vision.translated` takes the answer out of the prompts of decoders.
  """
  ops = (tok(key="prefix", bos="yes"), tok(key="septok", text=sep), 'setdefault("suffix", "")')
  suffix = tok(key="suffix", eos="no")
  joined = 'masked_concat(["prefix", "septok", "suffix"], mask_ar=[0, 0, 1], mask_input=[1, 1, 1])'
  pads = dict(text=0, mask_ar=1, mask_input=0)
  return _joined((*before, *ops, suffix, joined), text_len, pads, keep)


def _joined(ops, length, pads, keep=()) -> str:
  padded = (f'tolen({length}, pad_value={value}, key="{key}")' for key, value in pads.items())
  return "|".join([*ops, *padded, f"keep({', '.join(map(repr, ('image', *pads, *keep)))})"])
