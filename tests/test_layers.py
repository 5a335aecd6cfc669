"""Guards the shape of the package: who may import whom, and the one door of each outside thing."""

import ast
import pathlib
import re

import pgjax

PACKAGE = pathlib.Path(pgjax.__path__[0])
RANKS = [
  {"errors"},
  {
    "params",
    "metrics",
    "runs",
    "gpus",
    "hlo",
    "cache",
    "decode_method",
    "token_mask",
    "watching",
    "findings",
  },
  {"schema"},
  {"big_vision"},
  {"config", "adam8bit", "ema", "host_state", "rounding"},
  {"sharding", "optim", "models"},
  {"leaves", "weight_files", "search", "json_grammar", "at_hand"},
  {"weights", "hf", "kept_leaves", "named", "journal", "seg_weights"},
  {
    "data",
    "datasets",
    "step",
    "decode",
    "loading",
    "checkpoint",
    "metric_log",
    "start_page",
    "param_table",
    "peft",
  },
  {"checkpoint_params", "draw", "flops", "memory", "inspection_boxes", "grammar"},
  {"ckpt", "pictures", "decoders"},
  {"verify", "merging", "scorers", "answering", "compiled", "batch_picture", "inspection"},
  {"inspection_page"},
  {"evals"},
  {"report_split"},
  {"report"},
  {"step_time"},
  {"plan_page", "switches"},
  {"plan_table", "suggest"},
  {"plan_picture"},
  {"out_of_memory"},
  {"cli"},
  {"train", "evaluate", "predict", "convert", "plan", "check", "prepare", "demo"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}

# What it is -> the modules (first folder or file under pgjax) that may name it.
COMMANDS = RANKS[-1] | {"cli"}
IMPORT_DOORS = {
  "absl.flags": COMMANDS,
  "orbax": {"checkpoint", "checkpoint_params"},
  "tensorflow_datasets": {"data/sources", "datasets", "prepare"},
  "datasets": {"data/sources"},
  "huggingface_hub": {"named", "convert"},
  "tensorstore": {"checkpoint_params"},
  "tensorboardX": {"metric_log"},
  "gradio": {"demo"},
  "sentencepiece": {"data/tokenizer"},
  "grain": {"data"},
  "matplotlib": {"plan_picture"},
  "PIL": {"data", "datasets", "draw", "pictures", "batch_picture", "metrics/segmentation"},
  "pycocotools": {"metrics/detection"},
  "pycocoevalcap": {"metrics/caption"},
}
TEXT_DOORS = {
  r"\bjax\.jit\b": {"step", "decode"},
  r"\bjax\.distributed\b|\bjax\.process_(index|count)\b": {"sharding"},
  r"\bnp\.load\b|\bnumpy\.load\b|\bnp\.savez": {"weight_files"},
}
FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "tensorflow", "torch", "transformers", "clu"}
MAX_LINES = 400


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
  return name in doors or name.split("/")[0] in doors


def test_imports_go_down():
  wrong = []
  for name, path, tree in modules():
    here = name.split("/")[0]
    if here == "__init__":
      continue
    assert here in RANK, f"{path} has no rank: add it to RANKS"
    used = {dotted.split(".")[1] for dotted in imported(tree) if dotted.startswith("pgjax.")}
    wrong += [f"{name} imports {u}" for u in used - {here} if RANK[u] >= RANK[here]]
  assert not wrong, wrong


def test_models_import_nothing_of_pgjax_but_errors():
  wrong = [
    f"{name} imports {dotted}"
    for name, _, tree in modules()
    if name.startswith("models/")
    for dotted in imported(tree)
    if dotted.startswith("pgjax.") and dotted.split(".")[1] not in ("models", "errors")
  ]
  assert not wrong, wrong


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


def test_files_stay_readable():
  long = {
    name: n for name, path, _ in modules() if (n := len(path.read_text().splitlines())) > MAX_LINES
  }
  assert not long, f"over {MAX_LINES} lines: {long}"


def test_configs_are_data(root):
  for path in sorted((root / "configs").glob("*.py")):
    names = {dotted.split(".")[0] for dotted in imported(ast.parse(path.read_text()))}
    assert names <= {"configs", "ml_collections"}, f"{path.name} imports {names}"
