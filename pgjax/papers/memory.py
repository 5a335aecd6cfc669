"""How much memory does training a transfer need? From shapes at once, or from the compiled step."""

import contextlib

import jax

from pgjax.papers.commands import Recipe
from pgjax.planning import compiler, gpus, page

GPU = "H100"


def of_shapes(recipe: Recipe) -> str:
  """What is stored between steps, over all devices, without the activations."""
  jax.config.update("jax_platforms", "cpu")
  need = compiler.look(recipe.config, None, 1, compiled=False).need
  parts = dict(
    parameters=need.trained + need.frozen + need.lora,
    optimizer=need.optimizer,
    gradients=need.gradients,
  )
  listed = ", ".join(f"{name} {size / page.GB:.1f}" for name, size in parts.items())
  return (
    f"Memory from shapes, GB over all devices: {listed}; total {sum(parts.values()) / page.GB:.1f}"
    " without activations, which --plan adds."
  )


def compiled(recipe: Recipe, num_devices: int) -> str:
  """What pgjax.plan says of the step on each of some GPUs."""
  gpu = GPU if compiler.can_compile_for_gpus() else None
  limit_bytes = gpus.GPUS[GPU].memory_bytes
  with contextlib.closing(compiler.Compiler(gpu, num_devices)) as process:
    step = process.step(recipe.config, num_devices)
  note = [] if gpu else [page.FOR_CPU]
  head = f"On each of {num_devices} {GPU}, batch of {recipe.config.input.batch_size}:"
  return "\n".join([head, page.memory_table(step.need, limit_bytes), *note])
