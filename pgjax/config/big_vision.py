"""How is an original PaliGemma transfer config of big_vision read as a config of pgjax?

Its file runs unchanged: `stand_ins` replaces the modules that it imports where big_vision is not
installed. `translated` then renames fields and drops those without a meaning here.
"""

import contextlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Container, Iterator

from ml_collections import ConfigDict

from pgjax.config import schema
from pgjax.errors import UserError

# Fields without a meaning here, each with the reason.
IGNORED = {
  "model_name": "there is one model",
  "pp_modules": "all ops are known",
  "sharding_rules": "activations follow the batch",
  "shuffle_buffer_size": "the shuffle is global",
  "cache_raw": "see input.cache_mb",
  "cache": "see input.cache_mb",
  "prefetch": "always on",
  "prefetch_to_device": "always on",
  "tokenizer": "the run's tokenizer is used",
  "outfile": "predictions.jsonl is always written",
  "key": "the text is the label",
  "shift_labels": "always on",
}
# Arguments of get_config, which the originals also store in the config.
ARGUMENTS = (
  *("afmt", "batch_size", "beam_size", "crop", "eval_xm3600", "final_split", "freeze_llm"),
  *("freeze_vit", "mode", "prefix", "qfmt", "run_local", "size", "stride"),
)
_TRANSFERS = "proj.paligemma.transfers."
EVAL_TYPES = {
  "proj.paligemma.perplexity": "perplexity",
  f"{_TRANSFERS}coco_caption": "caption",
  f"{_TRANSFERS}storepreds": "predictions",
}
ANSWERS = dict(
  vqa=("answers", "suffix"), vqav2=("answers",), rsvqa=("answers",), caption=("captions",)
)
TOKENIZER = 'gemma(tokensets=("loc", "seg"))'


def is_original(config: ConfigDict) -> bool:
  """Whether this is a config of big_vision: those name the model's module."""
  return "model_name" in config or "pp_modules" in config


@contextlib.contextmanager
def stand_ins(parse_arg: Callable) -> Iterator[None]:
  """Lets a file import configs/common.py and the transfers' common.py of big_vision."""
  if "big_vision" in sys.modules or importlib.util.find_spec("big_vision"):
    yield
    return
  transfers = "big_vision.configs.proj.paligemma.transfers"
  contents = {
    "big_vision.configs.common": dict(parse_arg=parse_arg),
    f"{transfers}.common": dict(
      combine_and_keep_train=combine_and_keep_train,
      combine_and_keep_eval=combine_and_keep_eval,
      tok=tok,
      TOKENIZER=TOKENIZER,
    ),
  }
  names = {".".join(n.split(".")[:i]) for n in contents for i in range(1, n.count(".") + 2)}
  for name in sorted(names):
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(contents.get(name, {}))
    parent, _, last = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], last, module)
  try:
    yield
  finally:
    for name in names:
      del sys.modules[name]


def tok(**arguments) -> str:
  """The op that turns text into ids, always with the run's tokenizer."""
  arguments = {"model": TOKENIZER} | arguments
  return f"tok({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def combine_and_keep_train(text_len: int, before=(), sep: str = "\n") -> str:
  """Ops that pack prefix, separator and suffix for training (big_vision: transfers/common.py)."""
  ops = (tok(key="prefix", bos="yes"), tok(key="septok", text=sep), tok(key="suffix", eos="yes"))
  joined = 'masked_concat(["prefix", "septok", "suffix"], mask_ar=[0, 0, 1], mask_loss=[0, 0, 1])'
  return _packed((*before, *ops, joined), text_len + 1, dict(text=0, mask_ar=1, mask_loss=0))


def combine_and_keep_eval(text_len: int, keep=(), before=(), sep: str = "\n") -> str:
  """Ops that pack prefix and separator for decoding, never the suffix."""
  ops = (tok(key="prefix", bos="yes"), tok(key="septok", text=sep))
  joined = 'masked_concat(["prefix", "septok"], mask_ar=[0, 0], mask_input=[1, 1])'
  return _packed((*before, *ops, joined), text_len, dict(text=0, mask_ar=1, mask_input=0), keep)


def _packed(ops, length, pads, keep=()) -> str:
  padded = (f'tolen({length}, pad_value={value}, key="{key}")' for key, value in pads.items())
  return "|".join([*ops, *padded, f"keep({', '.join(map(repr, ('image', *pads, *keep)))})"])


def translated(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
  """(the config with our names, the fields that were ignored)."""
  c = config.to_dict()
  for name in ARGUMENTS:
    c.pop(name, None)
  ignored = _drop(c, "", schema.RUN) + _mixture(c["input"])
  ignored += _drop(c["input"], "input.", schema.INPUT)
  for entry in c["evals"].values():
    _evaluator(entry, c["input"]["batch_size"])
    ignored += _drop(entry, "evals.*.", schema.EVAL)
  if "text_len" not in c:  # From the op string, whose training rows have one token more.
    lengths = [int(n) for n in re.findall(r"tolen\((\d+)", c["input"]["pp"])]
    c["text_len"] = max(lengths, default=65) - 1
  return ConfigDict(c, type_safe=False), sorted(set(ignored))


def _drop(section: dict, where: str, known: Container[str]) -> list[str]:
  dropped = [name for name in section if name in IGNORED and name not in known]
  for name in dropped:
    del section[name]
  return [f"{where}{name} ({IGNORED[name]})" for name in dropped]


def _mixture(section: dict) -> list[str]:
  """Turns input.data={name: weight}, input[name].{data,pp} into one dict of sources and one pp."""
  if isinstance(section["data"].get("name"), str):
    return []
  parts = {name: section.pop(name) for name in section["data"]}
  pps = {part["pp"] for part in parts.values()}
  if len(pps) > 1:
    raise UserError(
      f"The data sets {', '.join(parts)} have different ops (pp), which is not available yet."
    )
  section["pp"] = pps.pop()
  section["data"] = {
    name: {"weight": section["data"][name], **part["data"]} for name, part in parts.items()
  }
  return [text for part in parts.values() for text in _drop(part, "input.*.", ("data", "pp"))]


def _evaluator(entry: dict, batch_size: int) -> None:
  entry["type"] = EVAL_TYPES.get(entry["type"], entry["type"].removeprefix(_TRANSFERS))
  entry["pp"] = entry.pop("pp_fn")
  how, arguments = entry.pop("pred", "decode"), entry.pop("pred_kw", {})
  if how == "beam_decode":
    entry["decode"] = f"beam({arguments.pop('beam_size')})"
  elif how not in ("decode", "logits"):
    raise UserError(f"pred={how!r} is not supported; only decode and beam_decode are.")
  entry.update(arguments)
  if "metrics" in entry:
    entry["caption_metrics"] = [name.removesuffix("-4") for name in entry.pop("metrics")]
  entry.setdefault("batch_size", batch_size)
  for column in ANSWERS.get(entry["type"], ()):
    if re.search(rf"keep\([^)]*['\"]{column}['\"]", entry["pp"]):
      entry["answer"] = column
