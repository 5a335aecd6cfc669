"""Do the configs and pgjax.prepare agree on the names of data sets, parts and splits?"""

import importlib
import re

import ml_collections

from pgjax.data.sources import registry as sources
from pgjax.datasets import registry


def data_of(config):
  """All {name, split} of a config; mixtures have the names as keys."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if not isinstance(config, dict):
    return
  if isinstance(config.get("name"), str) and isinstance(config.get("split"), str):
    yield config["name"], config["split"]
  for inner in config.values():
    yield from data_of(inner)


def test_the_name_of_a_transfer_stands_for_its_data(root):
  for config in ("aokvqa_mc", "cococap", "ocrvqa", "refcoco_seg", "textcaps", "vqav2", "docvqa"):
    module = importlib.import_module(f"configs.{config}")
    names = [data.name for data in registry.of_name(config)]
    assert names[0] in {name.split("/")[0] for name, _ in data_of(module.get_config())}
  assert len(registry.of_name("pope")) == 3


def test_the_names_of_the_configs_can_be_prepared(root):
  known, seen = registry.all_data_sets(), set()
  for path in sorted((root / "configs").glob("*.py")):
    module = importlib.import_module(f"configs.{path.stem}")
    if not hasattr(module, "get_config"):
      continue
    for name, split in data_of(module.get_config()):
      name, _, part = name.partition(":")[0].partition("/")
      if name in sources.SOURCES:
        continue
      assert name in known, (path.stem, name)
      data = known[name]
      assert (part or None) in data.part_names(), (path.stem, name, part)
      splits = {re.sub(r"\[.*", "", s).strip() for s in split.split("+")}
      assert splits <= set(data.counts(part or None)), (path.stem, name, splits)
      seen.add(name)
  assert {"vqa", "aokvqa", "ocrvqa_id", "stvqa", "rsvqa_hr", "textvqa", "xgqa"} <= seen
