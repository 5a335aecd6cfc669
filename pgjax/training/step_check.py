"""Are the kernels of the loss and of the update right on the run's own device?

Before the first step, `checked` compares them with XLA's results, on random input.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.errors import cut
from pgjax.kernels import choice
from pgjax.training import one_pass, optimizer

TOLERANCE = 1e-4  # Of the norm of each array.
_SIZE = (3, 5003)  # No multiple of a block.


def checked(model: Any, mesh: Any, log: Any) -> Any:
  """The model, without these kernels if they are wrong or fail; it is logged."""
  if mesh.size > 1 or not choice.runs_triton(model.dtype, choice.device_of(mesh)):
    return model
  with log.waiting("Comparing kernels of the loss and the update with XLA"):
    trouble = _trouble(mesh)
  if trouble is None:
    return model
  kind = mesh.devices.flat[0].device_kind
  log.say(f"On this {kind}, kernels of the loss and the update {trouble}: they are left to XLA.")
  return model.clone(kernels=False)


def _trouble(mesh) -> str | None:
  try:
    rng = np.random.default_rng(0)
    arrays = [np.abs(rng.normal(size=_SIZE)).astype(np.float32) for _ in range(4)]
    with jax.default_device(mesh.devices.flat[0]):
      found = max(float(e) for e in errors([jnp.asarray(a) for a in arrays]))
  except Exception as error:  # Of a compiler, a driver or a kernel: of any type.
    return f"fail ({cut(' '.join(str(error).split()))})"
  return None if found <= TOLERANCE else f"differ from XLA by {found:.2g} of the norm"


def errors(arrays: list[jax.Array], *, interpret: bool = False) -> list[jax.Array]:
  """Norms of the differences, relative to XLA's results."""
  from pgjax.kernels import elementwise, logsumexp  # Pallas takes long to import.

  rows = 20 * arrays[0]
  pairs = [(logsumexp.of_rows(rows, interpret=interpret), jax.nn.logsumexp(rows, axis=-1))]
  adam = optimizer.Adam({}, {})
  step = lambda blocks, scalars: one_pass.step(adam, 1e-3, 0.1, blocks, scalars)  # noqa: E731
  scalars = [jnp.float32(s) for s in (0.5, 0.1, 0.001, 0.9)]
  narrow = [*arrays[:3], arrays[3].astype(jnp.bfloat16)]
  ours, sums = elementwise.run(step, narrow[:3], narrow[3:], scalars, interpret=interpret)
  right, squared = step(narrow, scalars)
  pairs += [*zip(ours, right, strict=True), (sums, jnp.stack([jnp.sum(a * a) for a in squared]))]
  return [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]
