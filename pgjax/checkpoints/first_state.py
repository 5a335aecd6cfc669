"""Which state does a run begin with? The newest in its workdir, or an initial one.

Initial weights are checked at once, and read in the background while the step is compiled.
"""

import threading
import time
from concurrent import futures
from typing import Any

import jax

from pgjax.checkpoints import initial as initial_lib
from pgjax.distributed.signals import Stop
from pgjax.params import of_model
from pgjax.training import state as train_state


def newest(abstract: Any, saver: Any, log: Any, stop: Stop) -> tuple[Any, dict[str, Any]]:
  """The newest state in the workdir and its position in the data; None and the first one."""
  state, position = saver.latest(abstract)
  if state is None:
    return None, dict(step=0, evaluated=False)
  stop.last_words = (
    f"Stopped by {{}} before training went on; the checkpoint of step {position['step']} is the"
    " newest. Run the same command again."
  )
  log.say(f"Resuming from step {position['step']}.")
  return state, position


def initial_weights(config: Any, model: Any, abstract: Any, log: Any) -> futures.Future:
  """What config.model_init names: checked, and read by a thread; None in it without one."""
  weights: futures.Future = futures.Future()
  if not config.model_init:
    weights.set_result(None)
    return weights
  with log.waiting(f"Opening {config.model_init}"):
    leaves = of_model.stored_params(model, config)
    read = initial_lib.checked(config.model_init, abstract.params, leaves)

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


def initial(config: Any, model: Any, tx: Any, mesh: Any, weights: futures.Future, log: Any) -> Any:
  """The state of step 0."""
  if config.model_init:
    with log.waiting(f"Waiting for {config.model_init}"):
      loaded = weights.result()
  else:
    loaded = weights.result()
  with log.waiting("Initializing the state"):
    return jax.block_until_ready(train_state.init(model, tx, config, mesh, loaded))
