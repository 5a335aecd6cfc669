"""Are the docs true? Their commands run, flags, links and paths exist, tables are up to date."""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import PIL.Image
import pytest

from pgjax.config import load as config_load, schema, validate as config_validate
from pgjax.data import pipeline, tokenizer
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.models import paligemma
from pgjax.params import of_model, table as param_table
from pgjax.training import optimizer, state as train_state, summary
from tests import docs_blocks as docs

ROOT = docs.ROOT
pages = pytest.mark.parametrize("page", docs.PAGES, ids=lambda path: path.stem)

# All that is added to the commands of the docs when they are run here: less of the same.
FEW = "{'name': 'easy_vqa', 'split': 'test[:32]'}"
OWN = {
  "total_steps": 2, "input.batch_size": 8, "evals.val/pplx.batch_size": 8,
  "evals.val.batch_size": 8, "evals.val.max_decode_len": 4,
}  # fmt: skip
SHORTER = {
  "configs/forkme.py": OWN,
  "configs/detect.py": OWN,
  "configs/easyvqa.py": {
    "total_steps": 2, "ckpt_steps": 2, "evals.val.data": FEW, "evals.test.data": FEW,
  },
}  # fmt: skip


@pages
def test_each_block_has_a_language_and_a_known_reason_not_to_run(page):
  text = page.read_text()
  assert not re.search(r"^(?: {4}|\t)(?![-*|])\S", outside(text), re.MULTILINE), "indented block"
  for block in docs.blocks(text):
    where = f"{page.name}, line {block.line}"
    assert block.language in docs.LANGUAGES, where
    assert set(block.needs) <= set(docs.REASONS), where
    assert not block.needs or block.language in ("bash", "python"), where
  marks = re.findall(r"^ *<!-- needs:", text, re.MULTILINE)
  assert len(marks) == sum(bool(b.needs) for b in docs.blocks(text)), "a mark without a block"


def outside(text):
  """Without lists, whose continued lines are indented."""
  return re.sub(
    r"^( *)([-*]|\d+\.) .*\n(?:(?:\1 +.*)?\n)*", "", docs.prose(text), flags=re.MULTILINE
  )


@pages
def test_every_command_parses_and_its_config_is_valid(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  text = page.read_text()
  commands = [
    (f"{page.name}, line {block.line}", command)
    for block in docs.blocks(text)
    if block.language == "bash"
    for command in block.commands()
  ]
  commands += [(page.name, c) for c in docs.inline(text) if is_command(c)]
  for where, command in commands:
    check(where, command)


@pytest.mark.parametrize("folder", ["configs", "benchmarks", "launch"])
def test_commands_in_docstrings_parse(folder, monkeypatch):
  monkeypatch.chdir(ROOT)
  for path in sorted((ROOT / folder).glob("*.py")):
    for line in re.findall(r"^ *(python .*)$", path.read_text().split('"""')[1], re.MULTILINE):
      if "[" not in line and "..." not in line:
        check(path.name, line.partition("  #")[0])


def is_command(code):
  return bool(re.match(r"(python -m pgjax\.\w+ |python \w+/|pip install |make )", code)) and (
    "..." not in code
  )


def check(where, command):
  try:
    docs.check_command(command)
  except (AssertionError, UserError, Exception) as error:
    pytest.fail(f"{where}: {command}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(
  ("command", "message"),
  [
    ("python -m pgjax.trian --workdir=w", "there is no pgjax.trian"),
    ("python -m pgjax.predict --ckpt=w --imgae=a.png", "imgae"),
    ("python -m pgjax.train --workdir=w --config=configs/formke.py", "forkme.py"),
    ("python -m pgjax.train --workdir=w --config=configs/forkme.py:sise=3b", "sise"),
    ("python -m pgjax.train --workdir=w --config=configs/easyvqa.py --config.lrr=1", "lrr"),
    ("make quikstart", "quikstart"),
    ("pip install '.[cuda,metric]'", "metric"),
    ("pip install -r requirements-x.txt", "requirements-x.txt"),
    ("python benchmarks/memory.py --onyl=x", "--onyl"),
    ("python launch/local.py --processes=2 -- -m pgjax.train --wrokdir=w", "wrokdir"),
    ("curl http://x", "curl"),
  ],
)
def test_a_wrong_command_is_noticed(command, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(Exception, match=re.escape(message)):
    docs.check_command(command)


@pages
def test_every_link_leads_to_a_file_and_a_heading(page):
  text = docs.FENCE.sub("", page.read_text())
  targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
  broken = [b for target in targets if (b := docs.broken_link(page, target))]
  assert not broken


@pages
def test_every_path_exists(page):
  named = [path for code in docs.inline(page.read_text()) for path in docs.paths(code)]
  assert not [path for path in named if not docs.exists(path)]


@pages
def test_every_module_and_python_block_resolves(page):
  text = page.read_text()
  for code in docs.inline(text):
    if re.fullmatch(r"pgjax(\.\w+)+", code) and code not in ("pgjax.adam8bit", "pgjax.adam_bf16"):
      docs.resolve(code)
  for block in docs.blocks(text):
    if block.language == "python":
      docs.check_python(block.text)


def test_wrong_links_paths_and_names_are_noticed():
  readme = ROOT / "README.md"
  assert docs.broken_link(readme, "docs/no.md")
  assert docs.broken_link(readme, "docs/plan.md#no-such-heading")
  assert docs.paths("see configs/no.py.") == ["configs/no.py"]
  assert not docs.exists("configs/{common,no}.py")
  assert docs.exists("configs/{common,forkme}.py")
  with pytest.raises(AssertionError, match="no jitt"):
    docs.check_python("import jax\njax.jitt(f)")
  with pytest.raises(AttributeError):
    docs.resolve("pgjax.config.no_such_thing")


def generator():
  spec = importlib.util.spec_from_file_location("_docs_generate", ROOT / "docs/generate.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_generated_tables_are_up_to_date():
  generate = generator()
  used = [
    name for page in generate.pages() for _, name, _, _ in generate.MARKED.findall(page.read_text())
  ]
  assert sorted(used) == sorted(generate.TABLES)
  stale = [p.name for p in generate.pages() if generate.filled(p.read_text()) != p.read_text()]
  assert not stale, f"run `make docs`: {stale} are not what the code says"


def test_every_field_of_a_config_has_a_meaning():
  for fields in (schema.RUN, schema.INPUT, schema.IMG, schema.LLM, schema.SCHEDULE, schema.EVAL):
    other_units = tuple(f"_{unit}" for unit in ("epochs", "examples", "percent"))
    missing = [n for n, f in fields.items() if not f.help and not n.endswith(other_units)]
    assert not missing


def test_the_index_has_every_page_and_the_readme_every_extra():
  index = (ROOT / "docs/README.md").read_text()
  missing = [p.name for p in (ROOT / "docs").glob("*.md") if f"({p.name})" not in index]
  assert missing == ["README.md"]
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  extras = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
  readme = (ROOT / "README.md").read_text()
  assert not [extra for extra in extras if f"`{extra}`" not in readme]
  files = {path.name for path in ROOT.glob("requirements-*.txt")}
  assert files == {extra["file"][0] for extra in extras.values()}


def test_an_installed_package_has_all_its_files():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  patterns = project["tool"]["setuptools"]["package-data"]["*"]
  for path in (ROOT / "pgjax").rglob("*.*"):
    if path.suffix not in (".py", ".pyc"):
      assert any(path.match(pattern) for pattern in patterns), path
      assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize(
  ("page", "phrases"),
  [
    ("README.md", ["First example", "Compiling the training step", "The first step was done"]),
    ("docs/train.md", ["input wait", "memory", "left"]),
    ("docs/plan.md", ["trained parameters", "optimizer state", "= inputs",
                      "= peak with temporaries", "prefetched batches", "= total",
                      "Remedies, the cheapest first:"]),
    ("docs/check.md", ["same image as a training example, another prefix"]),
  ],
)  # fmt: skip
def test_sample_output_uses_the_programs_words(page, phrases):
  """Whoever rewords what a program prints finds here which page shows it."""
  source = "".join(path.read_text() for path in sorted((ROOT / "pgjax").rglob("*.py")))
  samples = "".join(b.text for b in docs.blocks((ROOT / page).read_text()) if b.language == "text")
  for phrase in phrases:
    assert phrase in samples, f"{page} no longer shows {phrase!r}: change this list"
    assert phrase.removeprefix("= ") in source, f"{page} shows {phrase!r}, which nothing prints"


@pytest.mark.slow
@pytest.mark.parametrize(
  "script", [p.name for p in (ROOT / "benchmarks").glob("*.py") if "argparse" in p.read_text()]
)
def test_a_benchmark_describes_itself_from_any_folder(script, tmp_path):
  """Without pgjax installed, and without the packages that it compares with."""
  env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "usage:" in done.stdout


@pytest.mark.parametrize(
  ("command", "package", "sentence"),
  [
    (
      "memory.py --only=no_vit_b32",
      "jax_plugins",
      "pip install --no-deps -r requirements-plan.txt",
    ),
    ("memory.py --only=nothing", "", "matches none of full_f32_b32"),
    ("memory.py --only=(", "", "is not a regular expression"),
    ("gpu.py --only=nothing --tiny", "", "matches none of full_224_b32"),
    ("hf_images.py --images=/nowhere", "transformers", "pip install -r requirements-parity.txt"),
  ],
)
def test_a_benchmark_names_what_is_missing(command, package, sentence, tmp_path):
  if package and importlib.util.find_spec(package):
    pytest.skip(f"{package} is installed")
  script, *words = command.split()
  command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1
  assert sentence in done.stderr


def test_the_excerpt_of_the_readme_is_what_the_quickstart_prints(monkeypatch):
  """The parameters and the first example, line by line; speeds and scores are those of one run."""
  monkeypatch.chdir(ROOT)
  config = config_validate.validated(config_load.load("configs/easyvqa.py"))
  tiny = tokenizer.load(config.tokenizer)
  first = next(pipeline.train_batches(config, tiny))
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  model = paligemma.Model(**config.model)
  leaves = of_model.stored_params(model, config)
  tx = optimizer.make(config, 100, of_model.trained_shapes(model, config))
  abstract = train_state.abstract_state(model, tx, config, mesh)
  printed = [*param_table.table(abstract.params, leaves).splitlines(), "...", ""]
  printed += summary.example(first, tiny).splitlines()
  blocks = docs.blocks((ROOT / "README.md").read_text())
  [shown] = [b.text for b in blocks if "First example" in b.text]
  excerpt = shown[: shown.index("Compiling")].splitlines()
  assert len(excerpt) > 12
  assert [line for line in excerpt if line not in printed] == []
  whole = summary.example(first, tiny)
  assert whole in shown


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with what the docs' commands name: the repository's files, small data, small runs."""
  folder = tmp_path_factory.mktemp("docs")
  for name in ("configs", "benchmarks", "launch", "pgjax"):
    (folder / name).symlink_to(ROOT / name)
  write_data(folder)
  runs = {
    "easyvqa": "configs/easyvqa.py", "mine": "configs/forkme.py:variant=tiny,res=64",
    "lora": "configs/easyvqa.py:tune=lora,init=workdir/easyvqa",
  }  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    for name, config in runs.items():
      run(f"python -m pgjax.train --workdir=workdir/{name} --config={config}")
  return folder


def write_data(folder):
  rng, data = np.random.default_rng(0), folder / "data"
  data.mkdir()
  for name in ("a.png", "a.jpg", "data/a.png", "data/b.png"):
    PIL.Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / name)
  for name in ("train", "val"):
    rows = [
      dict(image=f"{'ab'[i % 2]}.png", prefix=f"what is {name} {i}?", suffix=f"number {i}")
      for i in range(16)
    ]
    (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  asked = [dict(image="a.png", prefix=f"what is {i}?") for i in range(4)]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
  for name in ("train", "valid"):
    images = [dict(id=i, file_name=f"{'ab'[i]}.png", width=64, height=48) for i in range(2)]
    boxes = [
      dict(id=i, image_id=i, category_id=i + 1, bbox=[8, 8, 20, 16], area=320, iscrowd=0)
      for i in range(2)
    ]
    classes = [dict(id=1, name="cat"), dict(id=2, name="dog")]
    coco = dict(images=images, annotations=boxes, categories=classes)
    (data / f"{name}.json").write_text(json.dumps(coco))


def run(command):
  """A command of the docs, made shorter where SHORTER says so."""
  program, *words = docs.arguments(command)
  assert program == "python", f"{command} cannot be run; say what it needs"
  if words[0] != "-m":
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, *words], env=env, check=True)
  _, module, *words = words
  if module == "pgjax.train":
    [config] = [w for w in words if w.startswith("--config=")]
    file = config.removeprefix("--config=").split(":")[0]
    for field, value in SHORTER.get(file, {}).items():
      if not any(w.startswith(f"--config.{field}=") for w in words):
        words.append(f"--config.{field}={value}")
  assert docs.run_module(module, words) == 0, command
  return None


def runnable(page):
  return [b for b in docs.blocks(page.read_text())
          if b.language in ("bash", "python") and not b.needs]  # fmt: skip


@pytest.mark.slow
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", [p for p in docs.PAGES if runnable(p)], ids=lambda p: p.stem)
def test_what_the_docs_say_runs(page, place, tmp_path, monkeypatch):
  """The blocks of a page in their order, in a folder that the page has for itself."""
  folder = tmp_path / "here"
  shutil.copytree(place, folder, symlinks=True)
  monkeypatch.chdir(folder)
  names: dict[str, object] = {}
  for block in runnable(page):
    if block.language == "bash":
      for command in block.commands():
        run(command)
    else:
      file = pathlib.Path("block.py")
      file.write_text("\n" * block.line + block.text)
      names = {n: v for n, v in runpy.run_path(str(file), names).items() if n[:2] != "__"}
