"""Writes the generated tables of README.md and docs/: `make docs`.

A table is what a page has between `<!-- generated: NAME -->` and `<!-- end -->`; TABLES at the end
of this file maps each NAME to the function that makes it from the code. tests/test_docs.py fails
where a page does not have what this program would write.
"""

import importlib.util
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import common, published  # noqa: E402
from pgjax.config import schema  # noqa: E402
from pgjax.data.pp import parse  # noqa: E402

UNITS = ("steps", "epochs", "examples", "percent")
MARKED = re.compile(r"(<!-- generated: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
  """Rewrites the pages in which a table has changed."""
  for path in pages():
    before = path.read_text()
    if (after := filled(before)) != before:
      path.write_text(after)
      sys.stdout.write(f"{path.relative_to(ROOT)} was rewritten.\n")


def pages() -> list[pathlib.Path]:
  """All markdown of the repository's front and of docs/."""
  return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: str) -> str:
  """The text of a page with all its tables made anew."""
  return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[4]}", page)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Markdown; a | inside a cell is escaped."""
  header = list(header)
  lines = [header, ["---"] * len(header), *rows]
  return "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |\n" for row in lines)


def linked(text: str) -> str:
  """docs/lora.md as a link from a page of docs/."""
  return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", text)


def code(value: Any) -> str:
  """A value as it is written in a config, on one line."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  return f"`{value!r}`"


def fields(
  known: Mapping[str, schema.Field], defaults: Mapping[str, Any] | None = None
) -> Callable[[], str]:
  """The table of one section of a config; without defaults that column is left out."""

  def rows() -> Iterator[list[str]]:
    for name, field in known.items():
      prefix, _, unit = name.rpartition("_")
      if unit in UNITS and f"{prefix}_epochs" in known:
        if unit == "steps":
          yield duration(prefix)
        continue
      accepted = field.wants.replace(" in quotes", "")
      if not defaults:  # None means "not set" there.
        accepted = accepted.removesuffix(" or None").removesuffix(",")
      yield [f"`{name}`", accepted, *default(name), linked(field.help)]

  def default(name: str) -> list[str]:
    if not defaults:  # A tower's: those of its variant.
      return []
    return [
      "below"
      if name in ("input", "model")
      else code(defaults[name])
      if name in defaults
      else "required"
    ]

  def duration(prefix: str) -> list[str]:
    units = [unit for unit in UNITS if f"{prefix}_{unit}" in known]
    accepted = "a duration" + ("" if "percent" in units else ", not in percent")
    names = [f"{prefix}_{unit}" for unit in units]
    given = [f"`{n}={defaults[n]}`" for n in names if (defaults or {}).get(n) is not None]
    default = [given[0] if given else "unset"] if defaults else []
    return [f"`{prefix}_*`", accepted, *default, linked(known[names[0]].help)]

  header = ["field", "accepts", *(["default"] if defaults else []), "meaning"]
  return lambda: table(header, rows())


def op_table() -> str:
  """Every op of `pp` as it is called, and the first paragraph of its docstring."""

  def called(name: str, factory: Callable) -> str:
    parameters = [
      p.replace(annotation=inspect.Parameter.empty)
      for p in inspect.signature(factory).parameters.values()
      if p.name != "tokenizer"
    ]
    return f"`{name}{inspect.Signature(parameters)}`"

  def meaning(factory: Callable) -> str:
    first = inspect.getdoc(factory).strip().split("\n\n")[0]
    return " ".join(first.split()).replace("<", "&lt;")

  return table(["op", "what it does"], ([called(n, f), meaning(f)] for n, f in parse.OPS.items()))


def config_table() -> str:
  """Every config file: the first sentence of its docstring, and its arguments with defaults."""
  return table(["config", "task", "arguments"], (described(p) for p in config_files()))


def config_files() -> list[pathlib.Path]:
  """Those that have a get_config."""
  return [p for p in sorted((ROOT / "configs").glob("*.py")) if "def get_config" in p.read_text()]


def described(path: pathlib.Path) -> list[str]:
  """A row of config_table."""
  spec = importlib.util.spec_from_file_location(f"_docs_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  first = module.__doc__.strip().split("\n\n")[0]
  task = re.split(r"(?<=[^0-9]\.)\s", " ".join(first.split()))[0]
  arguments = ", ".join(f"`{name}={value}`" for name, value in arguments_of(module).items())
  return [f"`configs/{path.name}`", task, arguments]


def arguments_of(module: Any) -> dict[str, Any]:
  """What its get_config passes to common.parse_arg as defaults."""
  seen: dict[str, Any] = {}
  parse_arg = common.parse_arg

  def record(arg, **defaults):
    seen.update(defaults)
    return parse_arg(arg, **defaults)

  common.parse_arg = record
  try:
    module.get_config()
  finally:
    common.parse_arg = parse_arg
  return seen


SIZES = {"v1": "PaliGemma 1", "3b": "PaliGemma 2 3B", "10b": "10B", "28b": "28B", "mix": "mix (1)"}


def published_table() -> str:
  """The papers' scores in percent with their deviations, 224 / 448 / 896 px."""

  def row(task: str, name: str, by_size: Mapping[str, Mapping[int, tuple]]) -> list[str]:
    resolutions = sorted({res for by_res in by_size.values() for res in by_res})
    cells = [
      " / ".join(spread(*by_size[s].get(r, (None, None))) for r in resolutions)
      if s in by_size else "" for s in SIZES
    ]  # fmt: skip
    return [name, f"[`{task}`](../configs/{task}.py)", "/".join(map(str, resolutions)), *cells]

  def spread(mean: float | None, deviation: float | None) -> str:
    shown = "-" if mean is None else f"{mean:.1f}"
    return shown if deviation is None else f"{shown} ±{deviation:.1f}"

  rows = [
    row(task, name, by_size)
    for task, scores in published.RESULTS.items()
    for (name, _, _), by_size in scores.items()
  ]
  return table(["score", "config", "px", *SIZES.values()], rows)


def transfers_table() -> str:
  """Every transfer: what it is, its data sets, its scores as pgjax names them."""
  return table(["config", "task", "data sets", "scores"], map(transfer, sorted(published.RESULTS)))


def transfer(task: str) -> list[str]:
  """A row of transfers_table."""
  path = ROOT / "configs" / f"{task}.py"
  spec = importlib.util.spec_from_file_location(f"_docs_{task}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  named = [e.data.get("dataset_name", e.data.name) for e in c.evals.values()]
  scores = [f"`{evaluator}/{score}`" for _, evaluator, score in published.RESULTS[task]]
  return [
    f"[`{task}`](../configs/{task}.py)",
    re.split(r" (?:Score|Scored there)\b", described(path)[1])[0],
    ", ".join(f"`{name}`" for name in dict.fromkeys(named)),
    ", ".join(scores),
  ]


def meshes_table() -> str:
  """The presets of config.mesh."""
  rows = (
    (f"`{name}`", code(preset["mesh"]), code(preset["sharding_strategy"]))
    for name, preset in common.STRATEGIES.items()
  )
  return table(("name", "`mesh`", "`sharding_strategy`"), rows)


BASE = common.base().to_dict()
TABLES: dict[str, Callable[[], str]] = {
  "config-run": fields(schema.RUN, BASE),
  "config-input": fields(schema.INPUT, BASE["input"]),
  "config-img": fields(schema.IMG),
  "config-llm": fields(schema.LLM),
  "config-schedule": fields(schema.SCHEDULE),
  "config-evals": fields(schema.EVAL, common.EVAL),
  "configs": config_table,
  "meshes": meshes_table,
  "ops": op_table,
  "published": published_table,
  "transfers": transfers_table,
}

if __name__ == "__main__":
  main()
