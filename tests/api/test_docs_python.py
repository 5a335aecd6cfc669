"""The blocks of docs/python.md run, one after another, as they are written."""

import re
import runpy

import pytest


@pytest.mark.slow
@pytest.mark.xdist_group("api_runs")
def test_the_blocks_run_in_their_order(root, tmp_path, monkeypatch, capsys):
  text = (root / "docs/python.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
  assert len(blocks) == text.count("```") / 2 == 6
  (tmp_path / "configs").symlink_to(root / "configs")
  script = tmp_path / "blocks.py"
  script.write_text("\n".join(blocks))
  monkeypatch.chdir(tmp_path)
  names = runpy.run_path(str(script))
  assert names["run"].finished
  assert len(names["losses"]) == 20
  assert len(names["answers"]) == 2
  assert len(names["per_token"]) == 3
  [comment] = re.findall(r"print\(error\)  # (.*)", text)
  assert capsys.readouterr().out.endswith(comment + "\n")
