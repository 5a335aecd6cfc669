"""Initial weights are read beside other work, and what is wrong with them ends the run."""

import threading
import types

import pytest

from pgjax.checkpoints import first_state
from pgjax.errors import UserError
from pgjax.training import run_log


@pytest.fixture
def begin(monkeypatch, tmp_path):
  """begin(read) -> (config, how a run begins whose checkpoint is read by `read`, its log)."""
  log = run_log.Log(tmp_path, main=True, whole_process=True)
  monkeypatch.setattr(first_state.of_model, "stored_params", lambda model, config: None)

  def begin(read):
    monkeypatch.setattr(first_state.initial_lib, "checked", lambda *args: read)
    config = types.SimpleNamespace(model_init="w.npz")
    saver = types.SimpleNamespace(latest=lambda abstract: (None, None))
    abstract = types.SimpleNamespace(params={})
    return config, first_state.begin(config, None, abstract, saver, log, None), log

  yield begin
  log.close()


def test_weights_are_read_while_the_run_goes_on(begin, monkeypatch, capsys):
  compiled = threading.Event()
  config, beginning, log = begin(lambda: {"a": 1} if compiled.wait(60) else {})
  assert not beginning.weights.done()
  compiled.set()
  monkeypatch.setattr(first_state.train_state, "init", lambda *args: args[-1])
  assert first_state.completed(beginning, config, None, None, None, log) == {"a": 1}
  assert "Loading w.npz: " in capsys.readouterr().out


def test_an_error_of_reading_is_raised_where_the_weights_are_needed(begin):
  def read():
    raise UserError("w.npz: llm/embedder has NaN.")

  config, beginning, log = begin(read)
  with pytest.raises(UserError, match="llm/embedder has NaN"):
    first_state.completed(beginning, config, None, None, None, log)
