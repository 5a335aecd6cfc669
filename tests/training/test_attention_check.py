"""A run compares its attention with plain attention, and replaces it where it is wrong."""

import contextlib
import re
import types

import jax
import jax.numpy as jnp
import pytest
import tiny

from pgjax.errors import UserError
from pgjax.kernels import choice, chunked, on_mesh
from pgjax.training import attention_check


class Log:
  def __init__(self):
    self.lines = []

  def say(self, text):
    self.lines.append(text)

  @contextlib.contextmanager
  def waiting(self, what):
    yield


def checked(monkeypatch, **wrong):
  """(the model after the check, what was logged), with parts of the chunked kernel replaced."""
  kernel = dict(forward=chunked.forward, backward=chunked.backward) | wrong
  monkeypatch.setitem(on_mesh.KERNELS, "chunked", types.SimpleNamespace(**kernel))
  log, img = Log(), dict(tiny.IMG, attention="plain")
  model = tiny.model(attention="chunked").clone(img=img)
  return attention_check.checked(model, tiny.config(), tiny.mesh(), log), log.lines


def forgets_the_mask(q, k, v, visible, **options):
  return chunked.forward(q, k, v, None, **options)


def swaps_gradients(*arrays, **options):
  dq, dk, dv = chunked.backward(*arrays, **options)
  return dq, dv, dk


def fails(*arrays, **options):
  raise NotImplementedError("no kernel for\nthis device")


def test_a_right_kernel_stays(monkeypatch):
  model, lines = checked(monkeypatch)
  assert model.llm_config.attention == "chunked"
  assert not lines


@pytest.mark.parametrize(
  ("part", "kernel", "says"),
  [
    ("forward", forgets_the_mask, "differs from plain attention by .* of its output "),
    ("backward", swaps_gradients, "of its gradient of (keys|values) .allowed: 0.02"),
    ("forward", fails, r"fails \(no kernel for this device\)"),
  ],
)
def test_a_wrong_kernel_is_replaced_with_one_sentence(monkeypatch, part, kernel, says):
  model, lines = checked(monkeypatch, **{part: kernel})
  assert model.llm_config.attention == "plain"
  assert model.img_config.attention == "plain"
  (line,) = lines
  assert re.search(says, line)
  assert line.endswith("the text tower uses plain instead.")
  assert jax.devices()[0].device_kind in line


def test_inference_compares_kernels_without_their_gradients(monkeypatch):
  monkeypatch.setattr(
    choice, "KERNELS", ("chunked",)
  )  # Others do not run here, nor those of norms.
  monkeypatch.setattr(attention_check, "norm_errors", lambda *_: [jnp.float32(0)])
  model, lines = tiny.model(attention="chunked").clone(img=dict(tiny.IMG, attention="plain")), []
  for forward, stays in ((chunked.forward, True), (forgets_the_mask, False)):
    kernel = types.SimpleNamespace(forward=forward, backward=fails)
    monkeypatch.setitem(on_mesh.KERNELS, "chunked", kernel)
    found = attention_check.checked_forward(model, tiny.config(), tiny.mesh(), lines.append)
    assert found.llm_config.attention == ("chunked" if stays else "plain")
  (line,) = lines
  assert "of the norm of its output" in line


def test_what_fits_no_tower_is_refused():
  model = tiny.model(attention="flash")
  with pytest.raises(UserError, match=r'attention="flash" fits no tower.*needs an NVIDIA GPU'):
    attention_check.check_asked(model, tiny.config(), tiny.mesh())


def test_how_it_is_described():
  chosen = attention_check.choices(tiny.model(), tiny.config(), tiny.mesh())
  assert attention_check.described(chosen) == (
    "text tower plain (12 tokens are fewer than 1,024);"
    " image tower plain (4 tokens are fewer than 1,024)"
  )
  assert {c.name for c in chosen.values()} == {choice.PLAIN}
