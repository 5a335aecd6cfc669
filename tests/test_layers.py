"""Guards the shape of the package: who may import whom, and the one door of each outside thing."""

import ast
import importlib
import pathlib
import re

import pgjax

PACKAGE = pathlib.Path(pgjax.__path__[0])
# The line of packages, top to bottom: a package may import itself and what is below it.
LINE = [
  "api",
  "commands",
  "papers",  # pgjax.papers is a package with a __main__.
  "cli",
  "web",
  "evaluation",
  "data_check",
  "planning",
  "inference",
  "visualization",
  "checkpoints",
  "huggingface",
  "training",
  "data",
  "datasets",
  "distributed",
  "config",
  "params",
  "formats",
  "models",
  "layers",
  "kernels",
  "ground",
]
COMMANDS = {"train", "evaluate", "predict", "convert", "plan", "check", "prepare", "demo"}
GROUND = {"metrics", "errors", "call_syntax", "disk", "cache_dir"}

# What it is -> the modules (a package, or a file of it) that may name it.
IMPORT_DOORS = {
  "absl.flags": COMMANDS | {"cli", "data/pipeline", "kernels/flash"},
  "orbax": {"checkpoints/saver", "checkpoints/orbax_items", "checkpoints/orbax_params"},
  "tensorflow_datasets": {"data/sources", "datasets", "prepare"},
  "datasets": {"data/sources"},
  "huggingface_hub": {"huggingface/hub"},
  "tensorstore": {"checkpoints/orbax_params", "checkpoints/trainer_folder"},
  "tensorboardX": {"training/tensorboard"},
  "av": {"data/video"},
  "pyarrow": {"data/sources", "datasets"},
  "fsspec": {"data/sources", "formats/buckets"},
  "yaml": {"data/sources"},
  "gradio": {"demo"},
  "sentencepiece": {"data/sentencepiece_model"},
  "grain": {"data"},
  "tokamax": {"kernels/flash"},
  "matplotlib": {"planning/figure"},
  "PIL": {"api", "data", "datasets", "visualization", "metrics/segmentation"},
  "simplejpeg": {"data/images", "datasets/textvqa"},
  "pycocotools": {"metrics/detection", "datasets/coco_instances"},
  "google_crc32c": {"formats/tfrecord"},
  "pycocoevalcap": {"metrics/caption"},
}
TEXT_DOORS = {
  r"\bjax\.jit\b": {
    "training/step",
    "training/state",
    "training/attention_check",  # A small program of its own, before the first step.
    "inference/kernel_check",  # The same, before the first answer.
    "inference/decode",
    "evaluation/likelihood",
    "checkpoints/checksums",
    "training/schedules",  # All rates of a run at once, to see whether any is above 0.
    "models/seg_vae",  # A program of its own, which checks and scores run on the host.
  },
  r"\bjax\.distributed\b|\bjax\.process_(index|count)\b": {"distributed/processes"},
  r"\bnp\.load\b|\bnumpy\.load\b|\bnp\.savez": {"formats"},
}
FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "tensorflow", "torch", "transformers", "clu"}
MAX_LINES = 400
MAX_FLAT = 13  # Modules beside the packages: the commands, cli and the ground.


def modules():
  """(name such as "data/ops", path, syntax tree) of every file of the package."""
  for path in sorted(PACKAGE.rglob("*.py")):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    yield name, path, ast.parse(path.read_text())


def imported(tree):
  """Dotted names of everything a file imports, `from a import b` as a.b."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports hide the rank of what they import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def code_without_docstrings(tree):
  """The source without comments and docstrings: prose may name what code must not."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
      node.body = node.body[1:] or [ast.Pass()]
  return ast.unparse(tree)


def allowed(name, doors):
  """Is this file, or a folder above it, one of the doors?"""
  parts = name.split("/")
  return any("/".join(parts[:i]) in doors for i in range(1, len(parts) + 1))


def place(dotted):
  """Where in the line a module is: "data.pp.parse" in data, "train" in commands."""
  top = dotted.split(".")[0]
  if top in COMMANDS:
    return "commands"
  top = "ground" if top in GROUND else top
  assert top in LINE, f"pgjax.{dotted} has no place: add its package to LINE"
  return top


def test_imports_go_down():
  wrong = []
  for name, _, tree in modules():
    if name == "__init__":
      continue
    here = place(name.replace("/", "."))
    for dotted in imported(tree):
      if dotted.startswith("pgjax.") and dotted != "pgjax.__version__":
        there = place(dotted.removeprefix("pgjax."))
        if there != here and LINE.index(there) < LINE.index(here):
          wrong.append(f"{name} ({here}) imports {dotted} ({there})")
        if here == there == "commands":
          wrong.append(f"the command {name} imports {dotted}")
  assert not wrong, "\n".join(wrong)


def test_each_outside_thing_has_one_door():
  wrong = []
  for name, _, tree in modules():
    for dotted in imported(tree):
      for thing, doors in IMPORT_DOORS.items():
        if (dotted + ".").startswith(thing + ".") and not allowed(name, doors):
          wrong.append(f"{name} imports {dotted}; the door is {sorted(doors)}")
    code = code_without_docstrings(tree)
    for pattern, doors in TEXT_DOORS.items():
      if re.search(pattern, code) and not allowed(name, doors):
        wrong.append(f"{name} uses {pattern}; the door is {sorted(doors)}")
  assert not wrong, wrong


def test_nothing_runs_strings_or_reads_pickles():
  wrong = []
  for name, _, tree in modules():
    wrong += [
      f"{name} imports {dotted}"
      for dotted in imported(tree)
      if dotted.split(".")[0] in FORBIDDEN_IMPORTS
    ]
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        called = getattr(node.func, "id", None)
        if called in ("eval", "exec", "compile", "__import__"):
          wrong.append(f"{name}:{node.lineno} calls {called}")
        wrong += [
          f"{name}:{node.lineno} allows pickles"
          for keyword in node.keywords
          if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) is not False
        ]
  assert not wrong, wrong


def test_modules_live_in_packages():
  flat = {name for name, _, _ in modules() if "/" not in name and name != "__init__"}
  assert flat <= COMMANDS | GROUND | {"cli"}
  assert len(flat) <= MAX_FLAT


def test_files_stay_readable():
  long = {
    name: n for name, path, _ in modules() if (n := len(path.read_text().splitlines())) > MAX_LINES
  }
  assert not long, f"over {MAX_LINES} lines: {long}"


def test_what_declares_shapes_is_checked_for_them():
  """By the hook of pyproject.toml, which wraps every function of the modules that it names."""
  declare, unchecked = [], []
  for name, _, tree in modules():
    if any(dotted.startswith("jaxtyping.") for dotted in imported(tree)):
      module = importlib.import_module(f"pgjax.{name.replace('/', '.')}")
      functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
      declare.append(name)
      if not all(hasattr(getattr(module, n), "__wrapped__") for n in functions) or not functions:
        unchecked.append(name)
  assert {"training/state", "inference/search", "models/gemma"} <= set(declare)
  assert not unchecked, f"add these to --jaxtyping-packages in pyproject.toml: {unchecked}"


def test_configs_are_data(root):
  for path in sorted((root / "configs").glob("*.py")):
    names = {dotted.split(".")[0] for dotted in imported(ast.parse(path.read_text()))}
    assert names <= {"configs", "ml_collections"}, f"{path.name} imports {names}"


def test_every_command_first_prepares_for_signals():
  """Before its imports: a signal during them would print a trace."""
  commands, late = set(), set()
  for name, path, tree in modules():
    if name == "cli" or "cli.run(" not in path.read_text():
      continue
    commands.add(name)
    first = next(
      ast.unparse(node)
      for node in tree.body[1:]  # After the docstring.
      if getattr(node, "module", "") != "__future__"
    )
    if "__main__" not in first or "signals.begin(" not in first:
      late.add(name)
  assert commands >= COMMANDS
  assert not late, f"these must begin as train.py does: {late}"
