"""What do README.md and docs/ ask a reader to type? Blocks, commands, and a check of each command.

A fenced block has a language: `bash` and `python` are run by tests/test_docs.py, `text` and `json`
are output or files. What a test cannot run carries, on the line before, the reason:

  <!-- needs: weights, gpu -->

Its commands are still parsed with the real flags, and its config is built and validated.
"""

import ast
import contextlib
import glob
import importlib
import importlib.util
import io
import itertools
import pathlib
import re
import runpy
import shlex
import sys
import tomllib
import types
import warnings
from typing import NamedTuple

import pytest

from pgjax import cli
from pgjax.distributed import console, signals

ROOT = pathlib.Path(__file__).resolve().parents[1]
LANGUAGES = ("bash", "python", "text", "json")
REASONS = {
  "gpu": "an NVIDIA GPU",
  "weights": "a downloaded checkpoint",
  "network": "a download or an upload",
  "data": "a data set that is not in the repository",
  "minutes": "too long for a test",
  "forever": "runs until it is interrupted",
  "cluster": "a scheduler, or several hosts",
}
PROGRAMS = ("git", "gsutil", "export", "source", "kill")  # Not ours; never run.
# What they start is checked.
LAUNCHERS = ("sbatch", "mpirun", "torchrun", "launch/mpi.sh", "docker", "kubectl", "sky")
SCHEDULERS = ("ssh", "squeue", "scancel", "tail")
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *RESULTS]
FENCE = re.compile(
  r"(?:<!-- needs: (?P<needs>[^>]*?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n"
  r"(?P<text>.*?)^ *```$",
  re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")  # Of one line, or broken once.


class Block(NamedTuple):
  """One fenced block of a page."""

  line: int
  language: str
  needs: tuple[str, ...]
  text: str

  def commands(self) -> list[str]:
    """The lines of a shell block, those that end in a backslash joined to the next."""
    joined = self.text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: str) -> list[Block]:
  """All fenced blocks of a page, in order."""
  found = []
  for match in FENCE.finditer(page):
    needs = tuple(n.strip() for n in match["needs"].split(",")) if match["needs"] else ()
    text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
    line = page.count("\n", 0, match.start("language")) + 1
    found.append(Block(line, match["language"], needs, text))
  return found


def prose(page: str) -> str:
  """A page without its fenced blocks and comments."""
  return re.sub(r"<!--.*?-->", "", FENCE.sub("", page), flags=re.DOTALL)


def inline(page: str) -> list[str]:
  """All inline code of the prose; a line break inside is a space."""
  return [" ".join(code.split()) for code in INLINE.findall(prose(page))]


def arguments(command: str) -> list[str]:
  """The words of a command, without variables set before it and a redirection after it."""
  words = shlex.split(command.strip().removeprefix("$ "), comments=True)
  while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
    words.pop(0)
  if words[:1] == ["time"]:
    words.pop(0)
  return words[: words.index(">")] if ">" in words else words


def check_command(command: str) -> None:
  """Raises AssertionError or UserError if the command would be refused for how it is written."""
  words = arguments(command)
  program, *rest = words
  if program == "make":
    check_make(rest)
  elif program in ("pip", "python") and (program == "pip" or rest[:2] == ["-m", "pip"]):
    check_pip(rest if program == "pip" else rest[2:])
  elif program == "python" and rest[0] == "-m":
    if rest[1].startswith("pgjax."):
      check_module(rest[1], rest[2:])
  elif program == "python":
    check_script(rest[0], rest[1:])
  elif program in LAUNCHERS:
    files = [word for word in words if word.startswith("launch/")]
    assert all((ROOT / file).is_file() for file in files), files
    if "-m" in rest and "pgjax" in command:
      check_command(shlex.join(["python", *rest[rest.index("-m") :]]))
  else:
    assert program in PROGRAMS + SCHEDULERS, f"{program} is none of the programs that docs may name"


def check_make(words: list[str]) -> None:
  """Targets are in the Makefile."""
  makefile = (ROOT / "Makefile").read_text()
  for target in (word for word in words if "=" not in word):
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no {target}"


def check_pip(words: list[str]) -> None:
  """Requirement files exist, and so do extras."""
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
  for flag, word in itertools.pairwise(words):
    if flag == "-r":
      assert (ROOT / word).is_file(), word
  for word in words:
    if found := re.fullmatch(r"\.\[(.*)\]", word):
      unknown = set(found[1].split(",")) - set(extras["optional-dependencies"])
      assert not unknown, f"pyproject.toml has no extra {unknown}"


def check_script(script: str, words: list[str]) -> None:
  """The script exists and defines these flags (argparse); what follows `--` is a command itself."""
  path = ROOT / script
  assert path.is_file(), f"there is no {script}"
  own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (
    words, [])  # fmt: skip
  for word in own:
    flag = word.partition("=")[0]
    if flag.startswith("--"):
      assert f'"{flag}"' in path.read_text(), f"{script} has no flag {flag}"
  if rest:
    check_command(shlex.join(["python", *rest]))


def check_module(module: str, words: list[str]) -> None:
  """The flags parse, the config file builds and is valid: all that a command does before `main`."""
  run, said = cli.run, io.StringIO()

  def without_main(main, doc, flags=(), **options):
    run(lambda args: None, doc, flags, **options | dict(argv=[module, *words]))

  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
    patch.setattr(cli, "run", without_main)
    status = run_module(module, words)
  assert status == 0, said.getvalue()


def run_module(module: str, words: list[str]) -> int:
  """`python -m module words` in this process; its exit status."""
  assert importlib.util.find_spec(module), f"there is no {module}"
  before = sys.argv
  sys.argv = [module, *words]
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", RuntimeWarning)  # It was imported before: on purpose.
      with pytest.MonkeyPatch.context() as patch:  # Signals and output belong to the tests.
        patch.setattr(signals.Stop, "install", lambda *_: None)
        patch.setattr(console, "outlive_readers", lambda: None)
        runpy.run_module(module, run_name="__main__")
  except SystemExit as end:
    return end.code or 0
  finally:
    sys.argv = before
  return 0


def check_python(text: str) -> None:
  """It parses, its imports work, and what it takes from imported modules is there."""
  tree = ast.parse(text)
  imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
  names: dict[str, object] = {}
  for node in imports:
    for alias in node.names:
      if isinstance(node, ast.ImportFrom):
        names[alias.asname or alias.name] = resolve(f"{node.module}.{alias.name}")
      else:
        names[alias.asname or alias.name] = importlib.import_module(alias.name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = names.get(node.value.id)
      if isinstance(owner, types.ModuleType):
        assert hasattr(owner, node.attr), f"{owner.__name__} has no {node.attr}"


def resolve(dotted: str) -> object:
  """A module, or what a module has under a name."""
  module, _, name = dotted.rpartition(".")
  try:
    return importlib.import_module(dotted)
  except ModuleNotFoundError:
    if not module:
      raise
  return getattr(resolve(module), name)


def paths(code: str) -> list[str]:
  """The repository's own files that inline code names; {a,b} and * are spelled out by `exists`."""
  folders = "pgjax|configs|docs|tests|benchmarks|launch|notebooks"
  found = re.findall(rf"(?:^|[\s=(])((?:{folders})/[\w./{{}},*-]*)", code)
  found += re.findall(
    r"^(requirements[\w-]*\.txt|Makefile|pyproject\.toml|\w+\.md|\.ci/\w+)$", code
  )
  found += [f"tests/**/{name}" for name in re.findall(r"(?:^|[\s(])(test_\w+\.py)", code)]
  return [path.rstrip(".,") for path in found if "NAME" not in path]  # A reader's own choice.


def exists(path: str) -> bool:
  """Whether all files that a path names are there."""
  if braces := re.search(r"\{([^}]*)\}", path):
    return all(
      exists(path[: braces.start()] + option.strip() + path[braces.end() :])
      for option in braces[1].split(",")
    )
  return bool(glob.glob(str(ROOT / path), recursive=True))


def anchors(page: str) -> set[str]:
  """The #names of a page's headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_link(page: pathlib.Path, target: str) -> str:
  """What is wrong with a link of a page; "" if nothing is."""
  if re.match(r"https?://", target):
    return ""
  file, _, anchor = target.partition("#")
  path = (page.parent / file).resolve() if file else page
  if not path.exists():
    return f"{target}: there is no such file"
  if anchor and anchor not in anchors(path.read_text()):
    return f"{target}: the page has no such heading"
  return ""
