"""The kernels of decoding and of the step at PaliGemma 2 3B's shapes, for benchmarks/gpu.py."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

# Outputs, inputs and whether GeGLU follows, of a layer's matrices as decoding joins them.
MATRICES = {
  "queries, keys, values": (4096, 2304, False),
  "attention's output": (2304, 2048, False),
  "gate and up": (18432, 2304, True),
  "down": (2304, 9216, False),
}
SLOTS = {"224 px": 384, "448 px": 1152}  # Of the cache: image, prompt and 64 to 112 new tokens.


class Work(NamedTuple):
  """The same by a kernel and by plain JAX, without arguments, and the results' difference."""

  kernel: Callable[[], Any]
  plain: Callable[[], Any]
  error: Callable[[], float]


def cases(tiny: bool) -> dict[str, Callable[[], Work]]:
  """{name: makes the work}; tiny: an eighth of the size. Kernels are interpreted on a CPU."""
  import jax

  interpret = jax.default_backend() == "cpu"
  small = 8 if tiny else 1
  found = {
    "sums and norms, decoder, 224 px, batch 32": functools.partial(
      _norms, (32 // small, 384 // small, 2304 // small), True, interpret
    ),
    "sums and norms, SigLIP, 448 px, batch 8": functools.partial(
      _norms, (8 // small, 1024 // small, 1152 // small), False, interpret
    ),
    "log of sums of exponentials, 1,024 tokens": functools.partial(
      _logsumexp, (1024 // small**2, 257_216 // small), interpret
    ),
    "Adam's update, 122,683,392 numbers": functools.partial(
      _adam, (26, 2304 // small, 2048 // small), interpret
    ),
  }
  pairs = _of_decoding(small, interpret)
  return found | {name: functools.partial(_of_pair, make) for name, make in pairs.items()}


def _of_decoding(small, interpret):
  """{name: makes a kernel_check.Pair}."""
  from pgjax.inference import kernel_check

  found = {}
  for batch in (64, 16):  # Fewer examples attend by plain JAX: kernels/choice.py.
    for where, slots in SLOTS.items():
      found[f"attention to a cache, {where}, batch {batch}"] = functools.partial(
        kernel_check.attention_pair, 4, 2, 256 // small, 50.0, "bfloat16",
        shape=(batch // small, 1, slots // small), interpret=interpret,
      )  # fmt: skip
  for kind in ("int8", "nf4"):
    for rows in (64, 1):
      for name, (outputs, inputs, gated) in MATRICES.items():
        shape = (rows, outputs // small, max(128, inputs // small // 128 * 128))
        found[f"{kind}, {name}, {rows} rows"] = functools.partial(
          kernel_check.product_pair, kind, "bfloat16", gated=gated, shape=shape, interpret=interpret
        )
  return found


def _of_pair(make):
  pair = make()
  return Work(*pair, pair.error)


def _norms(shape, decoder, interpret):
  """x + post(branch) and its norm, forward and backward; SigLIP: x + branch and a layer norm."""
  import jax

  from pgjax.layers import residual

  arrays = [_random(i, shape, "bfloat16") for i in range(4)]
  norm = residual.Norm(*[_random(i, shape[-1:], "float32") for i in (4, 5)])
  post = residual.Norm(norm.bias_D, None) if decoder else None
  norm = norm._replace(bias_D=None) if decoder else norm

  def run(kernels, x, branch, *cotangents):
    how = dict(eps=1e-6, kernels=kernels, interpret=interpret)
    added = lambda x, branch: residual.added(x, branch, post, norm, **how)  # noqa: E731
    results, pull = jax.vjp(added, x, branch)
    return results, pull(cotangents)

  return _work(run, arrays)


def _logsumexp(shape, interpret):
  import jax

  from pgjax.kernels import logsumexp

  def run(kernels, x):
    of_rows = functools.partial(logsumexp.of_rows, interpret=interpret)
    return of_rows(x) if kernels else jax.nn.logsumexp(x, axis=-1)

  return _work(run, [20 * _random(0, shape, "float32")])


def _adam(shape, interpret):
  """The update of one leaf, in place, with the sums of squares that a step logs."""
  import jax
  import jax.numpy as jnp

  from pgjax.kernels import elementwise
  from pgjax.training import one_pass, optimizer

  step = functools.partial(one_pass.step, optimizer.Adam({}, {}), 1e-3, 0.1)
  scalars = [jnp.float32(s) for s in (0.5, 0.1, 0.001, 0.9)]

  def run(kernels, *arrays):
    if kernels:
      return elementwise.run(step, arrays[:3], arrays[3:], scalars, interpret=interpret)
    new, squared = step(arrays, scalars)
    return new, jnp.stack([jnp.sum(a * a) for a in squared])

  arrays = [jnp.abs(_random(i, shape, "float32")) for i in range(3)]
  gradient = _random(3, shape, "bfloat16")

  def in_place(kernels):
    update, state = jax.jit(functools.partial(run, kernels), donate_argnums=(0, 1, 2)), []

    def call():
      state[:], sums = update(*(state or [jnp.copy(a) for a in arrays]), gradient)
      return sums

    return call

  return Work(in_place(True), in_place(False), _work(run, [*arrays, gradient]).error)


def _random(number, shape, dtype):
  import jax

  return jax.random.normal(jax.random.key(number), shape, dtype)


def _work(run, arrays):
  """Of `run(whether by kernels, *arrays)`; the error is the largest of those of its results."""
  import jax

  ours, plain = (jax.jit(functools.partial(run, kernels)) for kernels in (True, False))

  def error():
    pairs = zip(*(jax.tree.leaves(call(*arrays)) for call in (ours, plain)), strict=True)
    return max(relative(*pair) for pair in pairs)

  return Work(lambda: ours(*arrays), lambda: plain(*arrays), error)


def relative(ours: Any, right: Any) -> float:
  """The norm of the difference of two arrays, over that of the second."""
  import jax.numpy as jnp

  ours, right = ours.astype(jnp.float32), right.astype(jnp.float32)
  return float(jnp.linalg.norm(ours - right) / jnp.linalg.norm(right))
