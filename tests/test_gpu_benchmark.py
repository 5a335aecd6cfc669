"""benchmarks/gpu.py at small sizes on a CPU: every table has its rows, and none is an error."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*words):
  command = [sys.executable, "-m", "benchmarks.gpu", *words]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(path):
  """{first cell: cells} of every table."""
  lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
  return {
    cells[0]: cells for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
  }


@pytest.mark.long
def test_steps_decoding_and_attention_are_measured(tmp_path):
  only = "full_224_b8|lora_896_b4(_plain)?|greedy_b1|greedy_b64_nf4|attention|kernels|input"
  ended = run("--tiny", f"--only={only}", f"--out={tmp_path}/gpu.md", "--minutes=30")
  assert ended.returncode == 0, ended.stderr
  table = rows(tmp_path / "gpu.md")
  for name in ("full_224_b8", "lora_896_b4", "lora_896_b4_plain"):
    milliseconds, loss = float(table[name][3]), float(table[name][9])
    assert milliseconds > 0
    assert 5 < loss < 10  # About log(1,856) for random weights.
  for name in ("greedy_b1", "greedy_b64_nf4"):
    assert all(float(cell.replace(",", "")) > 0 for cell in table[name][2:5])
  kernels = {
    n: cells for n, cells in table.items() if n.startswith(("attention to", "int8", "nf4"))
  }
  assert len(kernels) == 20
  assert all(float(cells[3]) < 5e-3 for cells in kernels.values())
  assert float(table["28"][1]) > 0
  plain = [line.split("|") for line in ended.stdout.splitlines() if "| plain |" in line]
  assert len(plain) == 6
  assert all(float(error) < 1e-2 for cells in plain for error in cells[5:7])


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs requirements-parity.txt")
def test_transformers_is_measured(tmp_path):
  ended = run("--tiny", "--only=transformers", f"--out={tmp_path}/gpu.md", "--minutes=30")
  assert ended.returncode == 0, ended.stderr
  table = rows(tmp_path / "gpu.md")
  for name in ("full_224_b8", "lora_224_b8", "lora_224_b32", "greedy_b64", "beam3_b64"):
    assert float(table[name][2]) > 0
