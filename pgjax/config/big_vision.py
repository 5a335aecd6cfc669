"""How is an original PaliGemma transfer config of big_vision read as a config of pgjax?

Its file runs unchanged, with the stand-ins of original_modules.py for what it imports. `translated`
then renames fields and drops those without a meaning here.
"""

import ast
import math
import os
import re
from collections.abc import Container, Iterable
from typing import Any

from ml_collections import ConfigDict

from pgjax import call_syntax
from pgjax.config import contents, schema
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
  "outfile": "see predictions.jsonl and submission.json",
  "key": "the text is the label",
  "shift_labels": "always on",
  "pad_token": "padding has no loss",
  "eos_look_behind": "decoding stops at once",
  "name": "the workdir names a run",
}
# What the video configs of big_vision name where a reader has to be put in.
_VIDEO = "<add_your_data_loader_here>"
_TRANSFERS = "proj.paligemma.transfers."
EVAL_TYPES = {
  "proj.paligemma.perplexity": "perplexity",
  f"{_TRANSFERS}coco_caption": "caption",
  f"{_TRANSFERS}storepreds": "predictions",
}
ANSWERS = dict(
  vqa=("answers", "suffix"), vqav2=("answers",), rsvqa=("answers",), caption=("captions",)
)
# The names of the columns in the files for test servers, of the types that write one.
_OUT_KEYS = dict.fromkeys(
  ("vqa", "vqav2", "chartqa", "rsvqa", "science_qa", "pope"), ("question_id", "answer")
) | dict(caption=("image_id", "caption"), predictions=("id", "caption"))


def is_original(config: ConfigDict) -> bool:
  """Whether this is a config of big_vision: those name the model's module."""
  return "model_name" in config or "pp_modules" in config


def translated(config: ConfigDict, arguments: Iterable[str] = ()) -> tuple[ConfigDict, list[str]]:
  """(the config with our names, the fields that were ignored).

  arguments: the names of get_config's arguments, which the originals also store in the config.
  """
  c = config.to_dict()
  for name in set(arguments) - set(schema.RUN):
    c.pop(name, None)
  ignored = _drop(c, "", schema.RUN) + _mixture(c["input"])
  ignored += _drop(c["input"], "input.", schema.INPUT)
  pps = [c["input"]["pp"], *(part["pp"] for part in _parts(c["input"]) if "pp" in part)]
  if "text_len" not in c:  # From the op string, whose training rows have one token more.
    c["text_len"] = (
      max([int(n) for pp in pps for n in re.findall(r"tolen\((\d+)", pp)], default=65) - 1
    )
  pps += [entry["pp_fn"] for entry in c["evals"].values()]
  frames = [
    int(n) for pp in pps for n in re.findall(r"video_ensure_shape\([^()\[]*[(\[](\d+),", pp)
  ]
  if frames:
    c["num_frames"] = max(frames)
  for entry in c["evals"].values():
    entry["data"] = _source(entry["data"])
    _evaluator(entry, c["input"]["batch_size"])
    ignored += _drop(entry, "evals.*.", schema.EVAL)
  return ConfigDict(c, type_safe=False), sorted(set(ignored))


def _drop(section: dict, where: str, known: Container[str]) -> list[str]:
  dropped = [name for name in section if name in IGNORED and name not in known]
  for name in dropped:
    del section[name]
  return [f"{where}{name} ({IGNORED[name]})" for name in dropped]


def _parts(section: dict) -> list[dict]:
  """The data sets of a mixture."""
  return [part for part in section["data"].values() if isinstance(part, dict)]


def _mixture(section: dict) -> list[str]:
  """Turns input.data={name: weight}, input[name].{data,pp} into one dict of sources and one pp.

  A data set with other ops than the first one keeps its own.
  """
  if isinstance(section["data"].get("name"), str):
    section["data"] = _source(section["data"])
    return []
  parts = {name: section.pop(name) for name in section["data"]}
  section["pp"] = next(iter(parts.values()))["pp"]
  section["data"] = {
    name: {
      "weight": section["data"][name],
      **_source(part["data"]),
      **({} if part["pp"] == section["pp"] else {"pp": part["pp"]}),
    }
    for name, part in parts.items()
  }
  return [text for part in parts.values() for text in _drop(part, "input.*.", ("data", "pp"))]


def _source(data: dict) -> dict:
  """The fields of a source, with our names."""
  data = dict(data)
  if data.get("name") == _VIDEO:
    data["name"] = "video"
  if data.get("name") == "bv:jsonl":
    if data.get("stop") == math.inf:
      del data["stop"]
    if not data.get("download_keys"):
      data.pop("download_keys", None)
    if isinstance(keys := data.get("fopen_keys"), dict):
      data["fopen_keys"] = {name: _local(folder) for name, folder in keys.items()}
    elif keys == "image" or list(keys or ()) == ["image"]:  # Names relative to where it is run.
      data["root"] = os.getcwd()
      del data["fopen_keys"]
    data["fname"] = _local(data["fname"])
  return data


def _local(path: Any) -> Any:
  """gs://bucket/file below the folder of buckets' copies, if that is set."""
  folder = os.environ.get(contents.BUCKETS)
  if folder and isinstance(path, str) and path.startswith("gs://"):
    return os.path.join(os.path.expanduser(folder), path.removeprefix("gs://"))
  return path


def _evaluator(entry: dict, batch_size: int) -> None:
  kind = entry["type"] = EVAL_TYPES.get(entry["type"], entry["type"].removeprefix(_TRANSFERS))
  how, arguments = entry.pop("pred", "decode"), dict(entry.pop("pred_kw", {}))
  if how == "beam_decode":
    entry["decode"] = f"beam({arguments.pop('beam_size')})"
  elif how not in ("decode", "logits"):
    raise UserError(f"pred={how!r} is not supported; only decode and beam_decode are.")
  elif "sampler" in arguments or "best_of_n" in arguments:
    sampler, n = arguments.pop("sampler", "greedy"), arguments.pop("best_of_n", 1)
    entry["decode"] = sampler if n == 1 else f"best_of({n}, {sampler})"
  entry.update(arguments)
  pp = entry.pop("pp_fn")
  entry["pp"] = _scored(pp) if kind == "perplexity" else _without_answer(pp)
  if "metrics" in entry:
    metrics = entry.pop("metrics")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    entry["caption_metrics"] = [name.removesuffix("-4") for name in metrics]
  entry.setdefault("batch_size", batch_size)
  for column in ANSWERS.get(kind, ()):
    if re.search(rf"keep\([^)]*['\"]{column}['\"]", entry["pp"]):
      entry["answer"] = column
  if kind in _OUT_KEYS:
    question, answer = _OUT_KEYS[kind]
    entry.setdefault("out_question_key", entry.pop("id_key", question))
    entry.setdefault("out_answer_key", answer)


def _scored(pp: str) -> str:
  """The ops of a likelihood; if they pack a prompt, with the answer's <eos>, as in training."""
  if "mask_loss" in pp:
    return pp
  ops = call_syntax.split(pp, "pp_fn")
  return "|".join(
    re.sub(r"eos=(['\"])no\1", "eos='yes'", op) if _tokenizes_suffix(op) else op for op in ops
  )


def _without_answer(pp: str) -> str:
  """The ops of a decoder, with a prompt that ends where the answer begins.

  big_vision goes on from a column `suffix`, and in data for training that is the true answer.
  """
  ops = call_syntax.split(pp, "pp_fn")
  if not any(map(_tokenizes_suffix, ops)):
    return pp
  changed = []
  for op in ops:
    name, args, named = _call(op)
    if _tokenizes_suffix(op):
      changed.append('tok(text="", outkey="no_answer")')
    elif name == "masked_concat":
      changed.append(re.sub(r"(['\"])suffix\1", '"no_answer"', op))
    elif name != "setdefault" or "suffix" not in (*args[:1], named.get("key")):
      changed.append(op)
  return "|".join(changed)


def _tokenizes_suffix(op: str) -> bool:
  name, _, named = _call(op)
  return (
    name == "tok" and "text" not in named and "suffix" in (named.get("key"), named.get("inkey"))
  )


def _call(op: str) -> tuple[str, list, dict[str, Any]]:
  """(name, arguments, named arguments) of an op; what is no literal is left out."""
  try:
    call = ast.parse(op, mode="eval").body
    args = [ast.literal_eval(a) for a in getattr(call, "args", [])]
    named = {k.arg: ast.literal_eval(k.value) for k in getattr(call, "keywords", [])}
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    return "", [], {}
  return op.partition("(")[0].strip(), args, named
