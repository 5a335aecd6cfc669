"""Initial weights are read beside other work, and what is wrong with them ends the run."""

import threading
import types

import pytest

from pgjax.checkpoints import first_state
from pgjax.errors import UserError
from pgjax.training import run_log


@pytest.fixture
def begin(monkeypatch, tmp_path):
  """begin(read) -> the weights of a run whose checkpoint is read by `read`."""
  log = run_log.Log(tmp_path, main=True, whole_process=True)
  monkeypatch.setattr(first_state.of_model, "stored_params", lambda model, config: None)

  def begin(read):
    monkeypatch.setattr(first_state.initial_lib, "checked", lambda *args: read)
    config = types.SimpleNamespace(model_init="w.npz")
    weights = first_state.initial_weights(config, None, types.SimpleNamespace(params={}), log)
    return config, weights, log

  yield begin
  log.close()


def test_weights_are_read_while_the_run_goes_on(begin, monkeypatch, capsys):
  compiled = threading.Event()
  config, weights, log = begin(lambda: {"a": 1} if compiled.wait(60) else {})
  assert not weights.done()
  compiled.set()
  monkeypatch.setattr(first_state.train_state, "init", lambda *args: args[-1])
  assert first_state.initial(config, None, None, None, weights, log) == {"a": 1}
  assert "Loading w.npz: " in capsys.readouterr().out


def test_an_error_of_reading_is_raised_where_the_weights_are_needed(begin):
  def read():
    raise UserError("w.npz: llm/embedder has NaN.")

  config, weights, log = begin(read)
  with pytest.raises(UserError, match="llm/embedder has NaN"):
    first_state.initial(config, None, None, None, weights, log)
