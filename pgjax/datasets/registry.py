"""Which data sets does pgjax.prepare know?"""

import importlib
import pkgutil

import pgjax.datasets
from pgjax.datasets.base import DataSet
from pgjax.errors import UserError, did_you_mean

_MACHINERY = {
  *("base", "download", "encoding", "registry", "writing", "from_tfrecord"),
  *("coco_instances", "dropped", "karpathy", "tables"),
}


def all_data_sets() -> dict[str, DataSet]:
  """{name: data set}; a file of this package declares one as DATA, or several as a list DATA."""
  known = {}
  for module in pkgutil.iter_modules(pgjax.datasets.__path__):
    if module.name in _MACHINERY:
      continue
    declared = getattr(importlib.import_module(f"pgjax.datasets.{module.name}"), "DATA", [])
    for data in declared if isinstance(declared, list | tuple) else [declared]:
      known[data.name] = data
  return dict(sorted(known.items()))


# The transfers whose config has another name than its data.
_TRANSFERS = {
  "aokvqa_da": ("aokvqa",),
  "aokvqa_mc": ("aokvqa",),
  "cococap": ("coco_captions",),
  "ocrvqa": ("ocrvqa_id",),
  "pope": ("pope_random", "pope_popular", "pope_adversarial"),
  "refcoco_seg": ("ref_coco_bv",),
  "screen2words": ("screen2_words",),
  "textcaps": ("text_caps",),
  "vqav2": ("vqa",),
}


def of_name(name: str) -> list[DataSet]:
  """The data set of this name, or those of the transfer of this name; raises UserError."""
  return [find(data) for data in _TRANSFERS.get(name, (name,))]


def find(name: str) -> DataSet:
  """The data set of this name; raises UserError."""
  known = all_data_sets()
  if name not in known:
    hint = did_you_mean(name, known)
    raise UserError(f"pgjax.prepare has no data set {name!r}.{hint} (--help lists all of them)")
  return known[name]


def help_table() -> str:
  """A line for each data set."""
  rows = all_data_sets().values()
  return "\n".join(["data sets:", *(f"  {data.name:<16} {data.about}" for data in rows)])
