"""The transfers of the papers: published scores, ours beside them, and how to reproduce each.

Without --task, the table of all: PaliGemma 1 (arXiv:2407.07726) and PaliGemma 2 (arXiv:2412.03555),
in percent, with the deviation over training runs. --task=NAME prints the commands that reproduce a
row, and the memory that training needs.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import json
import pathlib
from typing import Any

from etils import epy

from pgjax import cli, disk
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the flags.
  from pgjax.papers import commands, memory, page, results, rows


def main(args: Any) -> None:
  """Prints the table or the recipes of a task; writes --json and --page."""
  _check(args)
  listed = rows.published_rows(args.task)
  read = [result for folder in args.results or () for result in results.read(folder)]
  measured = rows.matched(listed, read)
  cli.say(rows.text_table(listed, measured))
  for note in rows.unmatched(listed, read):
    cli.say(note)
  recipes = _recipes(args, listed) if args.task else []
  for recipe in recipes:
    cli.say("\n" + page.recipe_text(recipe))
  for recipe in recipes[:1]:  # final_split does not change what a step needs.
    if recipe.trains:
      need = memory.compiled(recipe, args.devices) if args.plan else memory.of_shapes(recipe)
      cli.say(f"\n{need}")
  if args.json:
    data = dict(rows=rows.as_json(listed, measured), recipes=[page.recipe_json(r) for r in recipes])
    disk.write(pathlib.Path(args.json), json.dumps(data, indent=2) + "\n")
  if args.page:
    disk.write(pathlib.Path(args.page), page.html(listed, measured))


def _check(args: Any) -> None:
  """Raises for a flag that has no effect."""
  given = [name for name in ("size", "res", "config_arg", "plan") if getattr(args, name)]
  if given and not args.task:
    raise UserError(f"--{given[0]} chooses what --task=NAME prints; give it too.")


def _recipes(args: Any, listed: list[rows.Row]) -> list[commands.Recipe]:
  """Of the size and resolution of the flags, or the smallest published ones of PaliGemma 2."""
  known = sorted({(row.size, row.res) for row in listed}, key=lambda k: (k[0] != "3b", k))
  chosen = [
    (size, res) for size, res in known if args.size in (None, size) and args.res in (None, res)
  ]
  if not chosen:
    there = ", ".join(f"--size={size} --res={res}" for size, res in known)
    asked = " ".join(
      f"--{name}={value}" for name, value in dict(size=args.size, res=args.res).items() if value
    )
    raise UserError(f"{args.task} has no published score for {asked}; there are: {there}.")
  return commands.recipes(listed, *chosen[0], args.config_arg)


FLAGS = [
  cli.Flag("task", str, help="print how to reproduce this transfer, a name of the first column"),
  cli.Flag("size", str, help="with --task: v1, 3b, 10b, 28b or mix; without it 3b if published"),
  cli.Flag("res", int, help="with --task: the resolution; without it the smallest", least=1),
  cli.Flag(
    "config_arg", str, "", help="with --task: more arguments of the config, such as tune=lora"
  ),
  cli.Flag("plan", bool, False, help="with --task: compile the step, as pgjax.plan does"),
  cli.Flag("devices", int, 8, least=1, help="with --plan: how many H100"),
  cli.Flag("results", tuple, help="a workdir or a folder of results, to show beside the papers"),
  cli.Flag("json", str, help="a file for the same as data"),
  cli.Flag("page", str, help="an .html file for the table"),
]
EXAMPLES = [
  "python -m pgjax.papers --results=workdir --page=papers.html",
  "python -m pgjax.papers --task=ai2d --size=3b --res=448",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config="none", examples=EXAMPLES)
