"""Which pp strings have big_vision's transfers? Written from shared/spec, or a checkout's own.

PGJAX_BIG_VISION is the path of a checkout, which is only read.
"""

import functools
import json
import os
import pathlib
import re
import sys

CHECKOUT = os.environ.get("PGJAX_BIG_VISION", "")
FOLDER = "big_vision/configs/proj/paligemma/transfers"
ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("PGJAX_SHARED_DATA", ROOT.parent / "shared/data")).parent
GEMMA = 'model=\'gemma(tokensets=("loc", "seg"))\''
# Of get_config, where an argument changes more of the pp string than the resolution.
ARGUMENTS = {"science_qa": ["", "qfmt=simple,afmt=simple", "qfmt=QM,afmt=AL", "qfmt=CQM,afmt=ALE"]}


@functools.cache
def strings():
  """{name of a transfer and its data: pp}, each string of a transfer once; {} without both."""
  if CHECKOUT:
    return _of_checkout()
  path = SHARED / "spec/transfers.json"
  return _of_spec(json.loads(path.read_text())["transfers"]) if path.is_file() else {}


def _of_spec(transfers):
  """<lang> stands for part of a name there."""
  found = {}
  for transfer in transfers:
    training = (
      "train", transfer["train_pp_before_text_packing"], transfer["train_token_array_len"],
      transfer["train_keep"],
    )  # fmt: skip
    evaluated = [
      (e["key"], e["pp_before_text_packing"], e["token_array_len"], e["keep"])
      for e in transfer["evaluators"]
      if not isinstance(e["pp_before_text_packing"], str)  # That of training.
    ]
    for key, ops, length, keep in (training, *evaluated):
      pp = f"{_written(ops)}|{_packing(length, keep, training=key == 'train')}"
      pp = pp.replace("mask_<lang>", "mask_ar").replace("_<lang>", "_id").replace("<lang>", "id")
      found.setdefault((transfer["name"], pp), f"{transfer['name']} {key}")
  return {name: pp for (_, pp), name in found.items()}


def _packing(length, keep, *, training):
  """The end of every pp string: combine_and_keep_train or combine_and_keep_eval."""
  mask = "mask_loss=[0, 0, 1]" if training else "mask_input=[1, 1, 1]"
  ops = [
    f"tok({GEMMA}, key='prefix', bos='yes')",
    f"tok({GEMMA}, key='septok', text='\\n')",
    *([] if training else ["setdefault('suffix', '')"]),
    f"tok({GEMMA}, key='suffix', eos='{'yes' if training else 'no'}')",
    f"masked_concat(['prefix', 'septok', 'suffix'], outkey='text', mask_ar=[0, 0, 1], {mask})",
    f"tolen({length}, pad_value=0, key='text')",
    f"tolen({length}, pad_value=1, key='mask_ar')",
    f"tolen({length}, pad_value=0, key='{mask.split('=')[0]}')",
    f"keep({', '.join(map(repr, keep))})",
  ]
  return "|".join(ops)


def _written(ops):
  calls = []
  for op in ops:
    named = [f"{name}={value!r}" for name, value in op.get("kwargs", {}).items()]
    calls.append(f"{op['op']}({', '.join([*map(repr, op.get('args', [])), *named])})")
  return "|".join(calls)


def _of_checkout():
  """Six configs raise where a reader of videos has to be added, which no pp string depends on."""
  sys.path.insert(0, CHECKOUT)
  found = {}
  for path in sorted(pathlib.Path(CHECKOUT, FOLDER).glob("*.py")):
    names = {}
    source = re.sub(r"raise NotImplementedError\(.*\)", "pass", path.read_text())
    exec(compile(source, path, "exec"), names)
    for argument in ARGUMENTS.get(path.stem, [""]) if "get_config" in names else ():
      config = names["get_config"](argument)
      for key, part in [("train", config.input), *config.get("evals", {}).items()]:
        for pp in _strings_in(part):
          found.setdefault((path.stem, pp), f"{path.stem} {key} {argument}".strip())
  return {name: pp for (_, pp), name in found.items()}


def _strings_in(part):
  """The pp strings of a data set, of each of a mixture's, or of an evaluator."""
  of_mixture = [part[name].pp for name in part.get("data", {}) if "pp" in part.get(name, {})]
  both = part.get("pp"), part.get("pp_fn"), *of_mixture
  return [pp for pp in both if isinstance(pp, str)]
