"""Parameters as a nested dict, as a flat dict by name, and split into trained and frozen ones."""

from collections.abc import Collection, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dict to {"a/b/c": leaf}, sorted by name."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= {f"{key}/{name}": leaf for name, leaf in flatten(value).items()}
    else:
      flat[key] = value
  return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *path, last = name.split("/")
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def split(tree: Mapping[str, Any], names: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves with those names (see `trained_names`) and the others, as flat dicts."""
  flat = flatten(tree)
  trained = {name: leaf for name, leaf in flat.items() if name in names}
  return trained, {name: leaf for name, leaf in flat.items() if name not in names}


def merge(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `split`."""
  return unflatten(dict(sorted({**trained, **frozen}.items())))
