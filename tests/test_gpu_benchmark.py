"""benchmarks/gpu.py at small sizes on a CPU: every table has its rows, and none is an error."""

import importlib.util
import itertools
import math
import pathlib
import subprocess
import sys
import textwrap

import pytest

from benchmarks import gpu_turns

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = (
  "full_224_b8",
  "full_224_b32_products",
  "full_448_b8",
  "full_896_b2_plain",
  "attention_224_b32",
  "lora_224_b32",
  "qlora_224_b32",
)
DECODES = ("greedy_b1", "greedy_b64_nf4", "beam3_b64")
RANDOM_LOSS = math.log(1856)  # Of the tiny model's vocabulary.


def run(folder, *words):
  """{title: {first cells: cells}} of the tables."""
  command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes=30"]
  command += [*words, f"--out={folder}/gpu.md"]
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr
  text = (folder / "gpu.md").read_text()
  assert "Error" not in text, text
  assert "no time left" not in text, text
  assert text in ended.stdout
  return {title: rows(part) for title, _, part in map(parted, text.split("\n## ")[1:])}


def parted(section):
  return section.partition("\n")


def rows(text):
  lines = [line for line in text.splitlines() if line.startswith("|")]
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
  return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def number(cell):
  return float(cell.replace(",", "").removeprefix("<= "))


def assert_measured(tables, steps, decodes):
  """Every table has its rows, in which times are positive, and errors and losses as they must."""
  steps_of, decodes_of, attention, kernels, inputs = list(tables.values())[:5]
  assert {row["step"] for row in steps_of} == set(steps)
  for row in steps_of:
    assert min(number(row[key]) for key in ("ms", "examples/s", "of reached %")) > 0
    assert abs(number(row["loss"]) - RANDOM_LOSS) < 0.5
  assert {row["decode"] for row in decodes_of} == set(decodes)
  for row in decodes_of:
    keys = ("first token ms", "ms a token", "tokens/s", "of bandwidth %")
    assert min(number(row[key]) for key in keys) > 0
  for name in ("plain", "chunked", "triton"):
    of_name = [row for row in attention if row["implementation"] == name]
    assert len({row["shape"] for row in of_name}) == 6
    for row in of_name:
      assert min(number(row["forward ms"]), number(row["and backward ms"])) > 0
      assert max(number(row["error"]), number(row["of gradients"])) < 1e-2
  assert len({row["work"] for row in kernels}) == 24
  for row in kernels:
    assert min(number(row["kernel ms"]), number(row["plain ms"])) > 0
    assert number(row["error"]) < 5e-3
  assert [row["px"] for row in inputs] == ["28", "56"]
  assert min(number(row["examples/s"]) for row in inputs) > 0


@pytest.mark.slow
def test_all_tables_have_their_rows(tmp_path):
  tables = run(tmp_path, f"--only={'|'.join((*STEPS, *DECODES))}|attention|kernels|input")
  assert_measured(tables, STEPS, DECODES)


@pytest.mark.long
def test_all_cases_are_measured(tmp_path):
  from benchmarks import gpu_cases

  tables = run(tmp_path, "--full", "--only=(?!transformers).*")
  names = [[case.name for case in cases] for cases in (gpu_cases.STEPS, gpu_cases.DECODES)]
  assert_measured(tables, *names)


@pytest.mark.parity
@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs requirements-parity.txt")
def test_transformers_takes_its_turns(tmp_path):
  (table,) = run(tmp_path, "--only=transformers").values()
  assert {row["case"] for row in table} == {case.name for case in gpu_turns.CASES}
  for row in table:
    ours, theirs = (number(row[f"{name} ms"]) for name in gpu_turns.NAMES)
    assert min(ours, theirs) > 0
    assert number(row["times as fast"]) == pytest.approx(theirs / ours, abs=0.02, rel=0.02)
    for name in gpu_turns.NAMES:
      assert min(number(row[f"{name} a second"]), number(row[f"{name} GB"])) > 0
      if not row["case"].startswith(("greedy", "beam")):
        assert abs(number(row[f"{name} loss"]) - RANDOM_LOSS) < 0.5
    assert row["in memory"] == "both"


# The protocol of gpu_sides.py on a device that holds `capacity` sides; a log of what each does.
FAKE = """
  import json, pathlib, sys

  name, spec = sys.argv[1], json.loads(sys.argv[2])
  folder = pathlib.Path(__file__).parent
  held = folder / f"{name}.held"

  def log(what):
    with (folder / "log").open("a") as file:
      print(name, what, file=file)

  def say(**message):
    print(json.dumps(message), flush=True)

  log("starts")
  for line in sys.stdin:
    case = json.loads(line)
    if len(list(folder.glob("*.held"))) >= CAPACITY or name == "BROKEN":
      log("does not fit")
      say(error="OutOfMemoryError: no memory")
      continue
    held.touch()
    say(RETRIES, losses=[7.5, 7.5])
    for request in sys.stdin:
      if request == "end\\n":
        say(peak_step=2e9)
        break
      log("measures")
      say(seconds=4.0 if name == "transformers" else 2.0)
    held.unlink()
    log("frees")
    say()
  """


def fake_turns(monkeypatch, folder, capacity, broken="", retries=""):
  text = textwrap.dedent(FAKE).replace("CAPACITY", str(capacity)).replace("BROKEN", broken)
  (folder / "sides.py").write_text(text.replace("RETRIES, ", retries))
  monkeypatch.setattr(gpu_turns, "SIDES", folder / "sides.py")
  with gpu_turns.Turns((sys.executable, sys.executable), "cpu", tiny=True) as turns:
    row = dict(zip(gpu_turns.COLUMNS, turns.measure(gpu_turns.CASES[0]), strict=True))
  log = (folder / "log").read_text().splitlines()
  assert not list(folder.glob("*.held"))  # Nothing holds memory at the end.
  return row, log


def test_sides_that_fit_together_stay_in_memory(monkeypatch, tmp_path):
  row, log = fake_turns(monkeypatch, tmp_path, capacity=2)
  order = [line.split()[0] for line in log if line.endswith("measures")]
  assert order == ["pgjax", "transformers", "transformers", "pgjax", "pgjax", "transformers"]
  assert sum(line.endswith("starts") for line in log) == 2
  assert (row["pgjax ms"], row["transformers ms"]) == ("2000.0", "4000.0")
  assert (row["times as fast"], row["in memory"]) == ("2.00", "both")
  assert row["pgjax GB"] == row["transformers GB"] == "2.00"


@pytest.mark.parametrize("why", ["no room", "no room to spare"])
def test_sides_that_do_not_fit_together_take_turns_one_at_a_time(monkeypatch, tmp_path, why):
  # With room for both, transformers reports that its allocator had to free and ask again.
  how = dict(capacity=1) if why == "no room" else dict(capacity=2, retries="retries=3, ")
  row, log = fake_turns(monkeypatch, tmp_path, **how)
  order = [line.split()[0] for line in log if line.endswith("measures")]
  assert order == ["pgjax", "transformers", "transformers", "pgjax", "pgjax", "transformers"]
  for before, after in itertools.pairwise(log):  # One has freed before the other measures.
    if before.endswith("measures") and after.endswith("measures"):
      assert before == after
  # pgjax starts for each run of turns; transformers, which can free its memory, only once.
  assert [line for line in log if line.endswith("starts")].count("pgjax starts") == 2
  assert log.count("transformers starts") == 1
  assert (row["times as fast"], row["in memory"]) == ("2.00", "one at a time")
  assert row["pgjax GB"] == row["transformers GB"] == "2.00"


@pytest.mark.parametrize("broken", gpu_turns.NAMES)
def test_a_side_that_fails_leaves_the_other_its_row(monkeypatch, tmp_path, broken):
  row, log = fake_turns(monkeypatch, tmp_path, capacity=2, broken=broken)
  (other,) = set(gpu_turns.NAMES) - {broken}
  assert row[f"{broken} ms"] == "OutOfMemoryError: no memory"
  assert log.count(f"{other} measures") == gpu_turns.ROUNDS
  assert number(row[f"{other} ms"]) in (2000.0, 4000.0)
  assert row["times as fast"] == row["in memory"] == ""


def test_a_side_that_ends_is_a_row(monkeypatch, tmp_path):
  (tmp_path / "sides.py").write_text("import sys; sys.exit(3)")
  monkeypatch.setattr(gpu_turns, "SIDES", tmp_path / "sides.py")
  with gpu_turns.Turns((sys.executable, sys.executable), "cpu", tiny=True) as turns:
    row = dict(zip(gpu_turns.COLUMNS, turns.measure(gpu_turns.CASES[0]), strict=True))
  assert row["pgjax ms"] == "SystemExit: pgjax ended with 3; see above."


def test_cases_of_the_comparison_are_chosen_by_name():
  every = [case.name for case in gpu_turns.CASES]
  assert [case.name for case in gpu_turns.chosen("lora.*|transformers")] == every
  assert [case.name for case in gpu_turns.chosen("transformers_greedy.*")] == ["greedy_b64"]
  assert gpu_turns.chosen("full.*|greedy.*") == []


def test_an_interpreter_without_torch_is_named(tmp_path):
  python = tmp_path / "python"
  python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  python.chmod(0o755)
  assert gpu_turns.missing(str(python)) == ["torch", "transformers", "peft"]
