"""notebooks/finetune.ipynb runs from its first cell to its last, in a folder of its own."""

import os
import re

import pytest

from pgjax.api import arguments
from tests.commands import test_train as test_run

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.fixture
def notebook(root):
  return nbformat.read(root / "notebooks/finetune.ipynb", as_version=4)


def needs_weights(cell):
  return "needs-weights" in cell.metadata.get("tags", ())


@pytest.mark.slow
def test_it_runs_learns_and_draws(notebook, tmp_path):
  notebook.cells = [cell for cell in notebook.cells if not needs_weights(cell)]
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute(env=test_run.environment(devices=1) | {"MPLBACKEND": "agg"})
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  printed = "".join(output.get("text", "") for output in outputs)
  assert "error" not in {output.output_type for output in outputs}
  assert float(re.search(r"'val/acc': ([\d.]+)", printed)[1]) > 0.8
  pictures = [output for output in outputs if "image/png" in output.get("data", {})]
  assert len(pictures) >= 2  # What the model sees, and answers.
  assert (tmp_path / "finetune/scores/report.html").is_file()


def test_the_cell_that_needs_weights_names_a_config_that_exists(notebook, root, tmp_path):
  [cell] = [cell for cell in notebook.cells if needs_weights(cell)]
  [spec] = re.findall(r'REAL = f"(.*)"', cell.source)
  for name, value in dict(CONFIGS=root / "configs", TRAIN="a.jsonl", VAL="b.jsonl").items():
    spec = spec.replace("{" + name + "}", str(value))
  config = arguments.checked_config(spec, dict(total_steps=250))
  assert (config.model_init, config.dtype) == ("pt_3b_224", "bfloat16")
  assert config.params[0] == ("llm/layers/attn/.*", "train")


def test_what_is_committed_is_small_and_has_no_paths_of_a_machine(root):
  text = (root / "notebooks/finetune.ipynb").read_text()
  assert len(text) < 500_000
  assert "/root/" not in text
  assert os.path.expanduser("~/") not in text
