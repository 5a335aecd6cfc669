"""Which commands reproduce a published row? Prepare, train, evaluate, convert, plan."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pgjax.config import load as config_load, validate as config_validate
from pgjax.datasets import registry
from pgjax.papers.rows import Row

EVALUATION_ONLY = {"pope": "vqav2", "mmvp": "vqav2"}  # Scores of checkpoints of this transfer.


class Step(NamedTuple):
  """A command and what it is for."""

  purpose: str
  command: str


class Recipe(NamedTuple):
  """All commands of the rows of one training run."""

  rows: list[Row]
  spec: str  # --config= of train and plan.
  config: Any
  steps: list[Step]

  @property
  def trains(self) -> bool:
    """Whether a model is trained for it."""
    return self.rows[0].task not in EVALUATION_ONLY


def recipes(rows: Sequence[Row], size: str, res: int, more: str = "") -> list[Recipe]:
  """The recipes of a task's rows at a size and resolution: with and without final_split.

  more: further arguments of the config, such as "variant=tiny,batch_size=8".
  """
  here = [row for row in rows if (row.size, row.res) == (size, res)]
  groups = ([row for row in here if row.final_split == final] for final in (False, True))
  return [_recipe(group, size, res, more) for group in groups if group]


def _recipe(rows: list[Row], size: str, res: int, more: str) -> Recipe:
  task, final = rows[0].task, rows[0].final_split
  arguments = [f"res={res}", f"size={size}", *(["final_split"] if final else [])]
  spec = f"configs/{task}.py:{','.join([*arguments, *filter(None, [more])])}"
  config = config_validate.validated(config_load.load(spec))
  if uses_videos(config) and "data_dir=" not in more:
    spec += ",data_dir=VIDEOS"
  name = f"workdir/{task}-{size}-{res}{'-final' if final else ''}"
  evaluate = ["--evals=" + "|".join(_evaluators(rows)), f"--out={name}/scores"]
  steps = [*_prepare(config)]
  if task in EVALUATION_ONLY:
    trained = f"workdir/{EVALUATION_ONLY[task]}-{size}-{res}-final"
    checkpoint = f"paligemma-3b-mix-{res}" if size == "mix" else trained
    evaluate += [f"--ckpt={checkpoint}", f"--config={spec}"]
    note = "score" if size == "mix" else f"score, after the recipe of {EVALUATION_ONLY[task]}"
    steps.append(Step(note, _command("evaluate", *evaluate)))
  else:
    steps.append(Step("train", _command("train", f"--config={spec}", f"--workdir={name}")))
    steps.append(Step("score", _command("evaluate", f"--ckpt={name}", *evaluate)))
    export = [f"--src={name}", "--to=hf", f"--dst={name}-hf"]
    steps.append(Step("export for transformers", _command("convert", *export)))
    plan = [f"--config={spec}", "--device=H100", "--devices=8"]
    steps.append(Step("what 8 H100 need for it", _command("plan", *plan)))
  steps.append(Step("compare", _command("papers", f"--task={task}", f"--results={name}")))
  return Recipe(rows, spec, config, steps)


def _evaluators(rows: Sequence[Row]) -> list[str]:
  averages = config_load.shared("published").AVERAGES
  names = [name for row in rows for name in averages.get(row.evaluator, [row.evaluator])]
  return list(dict.fromkeys(names))


def uses_videos(config: Any) -> bool:
  """Whether its frames come from video files."""
  return any(part.get("name") == "video" for part in sources(config))


def sources(config: Any) -> list[Mapping[str, Any]]:
  """The sources of training and evaluation, with their names."""
  data = config.input.data.to_dict()
  training = [data]
  if not isinstance(data.get("name"), str):  # A mixture.
    parts = {name: value for name, value in data.items() if name not in ("split", "data_dir")}
    training = [
      {"name": name, **(value if isinstance(value, dict) else {})} for name, value in parts.items()
    ]
  return training + [entry.data.to_dict() for entry in config.evals.values()]


def _prepare(config: Any) -> list[Step]:
  """A command for each data set that pgjax.prepare knows."""
  known = registry.all_data_sets()
  parts: dict[str, list[str]] = {}
  for source in sources(config):
    name, _, part = source["name"].partition(":")[0].partition("/")
    if name in known:
      listed = parts.setdefault(name, [])
      listed += [part] if part and part not in listed else []
  return [
    Step(
      f"prepare {name} ({known[name].source})",
      _command(
        "prepare", name, "--raw=RAW" if known[name].needs_raw else "",
        f"--parts={','.join(sorted(listed))}" if listed and known[name].parts else "",
      ),
    )
    for name, listed in parts.items()
  ]  # fmt: skip


def _command(program: str, *words: str) -> str:
  return shlex.join(["python", "-m", f"pgjax.{program}", *filter(None, words)])
