"""remat="auto": the first policy that fits, by sizes that stand for compiled steps."""

import jax
import pytest
import tiny_run

from pgjax.config import load as config_load, validate as config_validate
from pgjax.distributed import mesh as mesh_lib
from pgjax.models import paligemma
from pgjax.params import of_model
from pgjax.planning import compiler, memory, remat_choice, savings
from pgjax.training import optimizer, state as train_state, step as step_lib


@pytest.fixture(scope="module")
def run():
  spec = "configs/forkme.py:size=3b,res=224,batch_size=32"
  config = config_validate.validated(config_load.load(spec, {"remat": "auto"}))
  return planned(config, jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))[0]


def planned(config, mesh):
  model = paligemma.Model(**config.model)
  trained = of_model.trained_shapes(model, config)
  tx = optimizer.make(config, 10, trained, num_examples=100)
  state = train_state.abstract_state(model, tx, config, mesh)
  batch = compiler.abstract_batch(config, mesh)
  run = remat_choice.planned(config, model, state, batch, mesh.size)
  return run, (model, tx, state, batch)


# Gigabytes of temporaries, as compiled for an H200.
SIZES = dict(products_saveable=35.0, mlp_gate_saveable=24.0, outputs_saveable=18.0,
             attention_saveable=16.0, mlp_out_saveable_chunked=13.0, least_memory=11.0)  # fmt: skip


def test_the_fastest_that_fits_is_taken_and_hopeless_ones_are_not_compiled(run):
  def attempt(policy):
    tried.append(policy)
    return run.need.with_temporaries(round(SIZES[policy] * 1e9)), f"program of {policy}"

  for limit, policy, compiled in (
    (140, "products_saveable", ["products_saveable"]),
    (70, "mlp_gate_saveable", ["mlp_gate_saveable"]),
    (57, "outputs_saveable", ["outputs_saveable"]),
    (55, "attention_saveable", ["outputs_saveable", "attention_saveable"]),
    (
      53,
      "mlp_out_saveable_chunked",
      ["outputs_saveable", "attention_saveable", "mlp_out_saveable_chunked"],
    ),
    (20, "least_memory", ["least_memory"]),
  ):
    tried = []
    choice = remat_choice.choose(run, attempt, limit * 1e9)
    assert (choice.policy, choice.compiled, tried) == (policy, f"program of {policy}", compiled)
    assert choice.why.startswith(f'remat="auto" is {policy}, with {choice.need.total / 1e9:.1f} GB')
    assert ("products_saveable needs at least" in choice.why) == (limit < 140)
    assert ("too much" in choice.why) == (limit == 20)


def test_what_is_stored_grows_in_the_reverse_order(run):
  stored = [savings.activation_bytes(run, policy) for policy in remat_choice.ORDER[:4]]
  assert stored == sorted(stored, reverse=True)
  # As arrays of the compiled programs: of 12,288 tokens in 26 layers, and of 8,192 in 27.
  assert stored[2] == 2 * (26 * 12_288 * (2304 + 2 * 2048) + 27 * 8192 * 1152)
  assert stored[1] - stored[2] == 2 * 26 * 12_288 * (2304 + 2 * 1024 + 9216)


def test_temporaries_of_a_step_are_gradients_first(run):
  need = run.need.with_temporaries(run.need.gradients + 5)
  assert (need.gradients, need.workspace) == (run.need.gradients, 5)
  assert run.need.with_temporaries(7).gradients == 7


@pytest.mark.slow
def test_on_devices_with_known_memory_the_compiled_program_is_measured(monkeypatch):
  """A real step: what fits is its own analysis."""
  settings = tiny_run.SETTINGS | {"remat": "auto"}
  config = config_validate.validated(config_load.load("configs/easyvqa.py", settings))
  mesh = mesh_lib.make_mesh([("data", 1)], jax.devices()[:1])
  about, (model, tx, state, batch) = planned(config, mesh)

  def compiled(policy):
    with_policy = model.clone(remat=policy)
    return step_lib.jitted(with_policy, tx, config, mesh).lower(state, batch).compile()

  fixed = (config, model, state, batch, mesh, compiled)
  unknown = remat_choice.for_devices(*fixed)
  assert unknown.policy == "least_memory"  # What "balanced" is in float32.
  assert "does not tell how much memory" in unknown.why
  monkeypatch.setattr(mesh_lib, "memory_limit", lambda mesh: 1 << 40)
  fastest = remat_choice.for_devices(*fixed)
  assert fastest.policy == "products_saveable"
  size = fastest.compiled.memory_analysis().temp_size_in_bytes
  assert fastest.need.temporaries == size
  assert fastest.need.arguments == about.need.arguments
  monkeypatch.setattr(
    mesh_lib, "memory_limit", lambda mesh: fastest.need.total - memory.RESERVE_BYTES - 1
  )
  assert remat_choice.for_devices(*fixed).policy != "products_saveable"
