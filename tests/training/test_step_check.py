"""Kernels of the loss and of the update, interpreted, and what follows if they are wrong."""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from pgjax.kernels import choice
from pgjax.training import step_check


def test_kernels_equal_xla():
  rng = np.random.default_rng(1)
  arrays = [jnp.abs(jnp.asarray(rng.normal(size=(2, 5003)), jnp.float32)) for _ in range(4)]
  assert max(map(float, step_check.errors(arrays, interpret=True))) < 1e-5


def test_failing_kernels_are_not_used(monkeypatch):
  lines = []
  log = types.SimpleNamespace(say=lines.append, waiting=lambda what: contextlib.nullcontext())
  mesh = tiny.mesh(devices=1)
  model = tiny.model()
  assert step_check.checked(model, mesh, log).kernels  # On a CPU nothing is compared.
  monkeypatch.setattr(choice, "runs_triton", lambda *_: True)  # They cannot be compiled for a CPU.
  model = step_check.checked(model, mesh, log)
  assert not model.kernels
  (line,) = lines
  assert jax.devices()[0].device_kind in line
  assert line.endswith("they are left to XLA.")
