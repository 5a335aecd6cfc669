"""Adam as one pass over every array equals optax's chain, step after step."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from pgjax.training import one_pass, optimizer, step

SHAPES = {"img/head/kernel": (40, 60), "llm/a": (3, 7), "llm/b": (2048, 2)}


def test_it_equals_the_chain():
  config = tiny.config()
  config.optax_name, config.optax, config.lr, config.wd = "scale_by_adam", dict(b2=0.99), 0.01, 0.1
  config.lr_mults, config.grad_clip_norm = [("llm/.*", 0.5), (".*", 1.0)], 1.0
  rng = np.random.default_rng(0)
  random = lambda: {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}  # noqa: E731
  leaves = random()
  tx = optimizer.make(config, 100, leaves)
  assert not one_pass.fits(tx, config, tiny.mesh(), leaves)  # On a CPU.
  apply = lambda leaves, updates: {n: leaf + updates[n] for n, leaf in leaves.items()}  # noqa: E731
  how = dict(grad_clip_norm=config.grad_clip_norm, interpret=True)
  ours = jax.jit(lambda g, s, a: one_pass.update(tx, apply, g, s, a, **how))
  theirs = jax.jit(lambda g, s, a: step._update(tx, apply, g, s, a))  # noqa: SLF001
  found = right = (leaves, tx.init(leaves))
  for _ in range(3):
    grads = random()
    found, right = (run(grads, x[1], x[0]) for run, x in ((ours, found), (theirs, right)))
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_other_optimizers_are_left_to_xla():
  config = tiny.config()
  config.optax_name, config.optax = "scale_by_adam", dict(mu_dtype="bfloat16")
  assert optimizer.make(config, 100, ["llm/a"]).adam is None
