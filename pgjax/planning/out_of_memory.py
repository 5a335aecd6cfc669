"""What does pgjax.train report when a device is out of memory? A table of bytes, and remedies.

The bytes come from shapes and, if the step was compiled, from its analysis: nothing is recompiled.
"""

from typing import Any

import jax

from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.params import of_model
from pgjax.planning import compiler, memory, page as plan_page, savings

_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class Advice:
  """A reusable context manager that turns out-of-memory errors into a UserError."""

  def __init__(self, config: Any, model: Any, abstract: Any, mesh: Any):
    self.program = None  # The compiled step, when there is one.
    self._about = (config, model, abstract, mesh)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if isinstance(error, jax.errors.JaxRuntimeError) and any(w in str(error) for w in _WORDS):
      reason = str(error).strip().splitlines()[0]
      raise UserError(page(reason, self.program, *self._about)) from error


def page(reason: str, program: Any, config: Any, model: Any, abstract: Any, mesh: Any) -> str:
  """The table and the three cheapest switches."""
  leaves = of_model.stored_params(model, config)
  batch = compiler.abstract_batch(config, mesh)
  temporaries = program.memory_analysis().temp_size_in_bytes if program is not None else None
  need = memory.need(config, model, abstract, batch, leaves.rules, temporaries)
  limit = mesh_lib.memory_limit(mesh)
  run = savings.PlannedRun(config, model, leaves, need, mesh.size)
  excess = need.step + need.waiting - limit if limit else None
  lines = [
    f"a device is out of memory ({reason}). The run needs:",
    plan_page.memory_table(need, limit),
  ]
  if program is None:
    lines.append("The step was not compiled yet: temporaries are missing.")
  lines += ["Remedies, the cheapest first:", savings.lines(savings.cheapest(run, excess))]
  if mesh.size == 1:
    lines.append("More devices shard parameters and optimizer state (sharding_strategy fsdp).")
  if config.evals:
    lines.append("If an evaluation was running: its batch_size can be smaller.")
  lines.append("python -m pgjax.plan --suggest with the same config searches for one that fits.")
  return "\n".join(lines)
