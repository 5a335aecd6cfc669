"""An out-of-memory error becomes a table of bytes and remedies."""

import re

import jax
import jax.numpy as jnp
import pytest
import tiny

from pgjax import train
from pgjax.errors import UserError
from pgjax.planning import out_of_memory
from tests.commands import test_train as test_run

TOO_MUCH = 2**44  # Numbers in float32: more than any machine has.


def allocate():
  return jnp.zeros((TOO_MUCH,), jnp.float32).block_until_ready()


@pytest.fixture(scope="module")
def run():
  config = tiny.config(evals={"val": {}}, dtype="float32", remat="none", num_frames=0)
  return tiny.Run(config, tiny.model(), tiny.mesh(devices=8))


def advice_of(run):
  return out_of_memory.Advice(run.config, run.model, run.abstract, run.mesh)


def test_a_failed_allocation_reports_the_compiled_steps_bytes(run):
  advice = advice_of(run)
  batch = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in tiny.batch().items()}
  advice.program = run.train_step.lower(run.abstract, batch).compile()
  with pytest.raises(UserError) as raised, advice:
    allocate()
  page = str(raised.value)
  assert "RESOURCE_EXHAUSTED" in page
  assert "activations and workspace" in page
  assert "--config.dtype=bfloat16" in page
  assert "an evaluation was running" in page
  assert raised.value.__cause__ is not None


def test_before_the_step_is_compiled_only_shapes_are_reported(run):
  with pytest.raises(UserError, match="was not compiled yet") as raised, advice_of(run):
    allocate()
  assert "trained parameters" in str(raised.value)


@pytest.mark.parametrize(
  "error", [ValueError("Out of memory"), jax.errors.JaxRuntimeError("INTERNAL: x")]
)
def test_other_errors_pass(run, error):
  with pytest.raises(type(error), match=str(error)), advice_of(run):
    raise error


@pytest.mark.slow
def test_a_first_step_that_needs_terabytes_ends_in_one_page(tmp_path, capsys):
  """Plain attention's scores of 400,000 tokens: it compiles in seconds, no machine can run it."""
  settings = dict(text_len=400_000, evals__val__log_steps=1000, attention="plain")
  assert test_run.run_here(train, test_run.arguments(tmp_path, **settings)) == 1
  output = capsys.readouterr()
  assert "Compiling the training step" in output.out
  assert "error: a device is out of memory (RESOURCE_EXHAUSTED" in output.err
  assert "Traceback" not in output.err
  assert float(re.search(r"activations and workspace +([\d.]+)", output.err)[1]) > 1000
  assert "--config.dtype=bfloat16" in output.err
