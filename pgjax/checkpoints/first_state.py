"""Which state does a run begin with? The newest in its workdir, or an initial one.

Initial weights are checked at once, and read in the background while the step is compiled.
"""

import threading
import time
from concurrent import futures
from typing import Any, NamedTuple

import jax

from pgjax.checkpoints import initial as initial_lib
from pgjax.distributed.signals import Stop
from pgjax.params import of_model
from pgjax.training import state as train_state


class Beginning(NamedTuple):
  """What a run begins with, as far as it is known before the step is compiled."""

  state: Any  # The newest one in the workdir, or None.
  position: dict[str, Any]  # In the data.
  weights: futures.Future | None  # Of an initial state, where the config names a checkpoint.


def begin(config: Any, model: Any, abstract: Any, saver: Any, log: Any, stop: Stop) -> Beginning:
  """Loads the newest state; without one it checks initial weights, and a thread reads them."""
  state, position = saver.latest(abstract)
  if state is None:
    weights = _read(config, model, abstract, log) if config.model_init else None
    return Beginning(None, dict(step=0, evaluated=False), weights)
  stop.last_words = (
    f"Stopped by {{}} before training went on; the checkpoint of step {position['step']} is the"
    " newest. Run the same command again."
  )
  log.say(f"Resuming from step {position['step']}.")
  return Beginning(state, position, None)


def _read(config, model, abstract, log) -> futures.Future:
  """The parameters that config.model_init names; an error of reading is in the future."""
  with log.waiting(f"Opening {config.model_init}"):
    leaves = of_model.stored_params(model, config)
    read = initial_lib.checked(config.model_init, abstract.params, leaves)
  weights: futures.Future = futures.Future()

  def work():
    began = time.monotonic()
    try:
      loaded = read()
    except BaseException as error:  # Raised where the weights are needed.
      weights.set_exception(error)
      return
    log.say(f"Loading {config.model_init}: {time.monotonic() - began:.1f} s, beside other work")
    weights.set_result(loaded)

  threading.Thread(target=work, name="weights", daemon=True).start()
  return weights


def completed(beginning: Beginning, config: Any, model: Any, tx: Any, mesh: Any, log: Any) -> Any:
  """The state, initial or not; raises what reading the weights raised."""
  if beginning.state is not None:
    return beginning.state
  loaded = None
  if beginning.weights is not None:
    with log.waiting(f"Waiting for {config.model_init}"):
      loaded = beginning.weights.result()
  with log.waiting("Initializing the state"):
    return jax.block_until_ready(train_state.init(model, tx, config, mesh, loaded))
