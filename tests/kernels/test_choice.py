"""Which implementation `auto` takes, and what it says about the others; nothing is compiled."""

import pytest

from pgjax.kernels import choice, flash

H100 = choice.Device("gpu", 9.0)
SIGLIP = choice.Shape(4096, 72, "bfloat16", masked=False)
GEMMA_2 = choice.Shape(4608, 256, "bfloat16", 50.0)
GEMMA_1 = choice.Shape(4608, 256, "bfloat16")
CASES = [  # wanted, shape, device, whether tokamax is installed, what is chosen, why
  ("auto", GEMMA_2._replace(tokens=384), H100, True, "triton", "384 tokens"),
  ("auto", GEMMA_2._replace(tokens=384), choice.Device("gpu", 8.0), False, "triton", ""),
  ("auto", GEMMA_2._replace(tokens=384), choice.Device(), False, "plain", "fewer than 1,024"),
  ("auto", GEMMA_2._replace(tokens=384), choice.Device("gpu", 7.5), False, "plain", ""),
  ("auto", GEMMA_2._replace(tokens=384, dtype="float32"), H100, True, "plain", ""),
  ("auto", GEMMA_2._replace(tokens=100), H100, True, "plain", "100 tokens are fewer than 128"),
  ("auto", SIGLIP._replace(tokens=256), H100, True, "triton", "256 tokens"),
  ("auto", GEMMA_2, H100, True, "flash", "4,608 tokens"),
  ("auto", GEMMA_2, H100, False, "triton", "flash needs tokamax"),
  ("auto", GEMMA_2, choice.Device("gpu", 10.0), True, "flash", ""),
  ("auto", GEMMA_2, choice.Device("gpu", 8.9), True, "triton", "compute capability 8.9"),
  ("auto", GEMMA_2, choice.Device("gpu", 12.0), True, "triton", "compute capability 12.0"),
  ("auto", GEMMA_2, choice.Device("gpu", 7.5), True, "chunked", "triton needs compute capability"),
  ("auto", GEMMA_2, choice.Device("cpu"), True, "chunked", "flash needs an NVIDIA GPU"),
  ("auto", GEMMA_2._replace(dtype="float32"), H100, True, "chunked", "not in float32"),
  ("auto", GEMMA_1, H100, True, "flash", ""),
  ("auto", SIGLIP, H100, True, "cudnn", "without mask and soft-cap"),
  ("auto", SIGLIP, choice.Device("gpu", 8.0), False, "cudnn", ""),
  ("auto", SIGLIP, choice.Device("gpu", 7.5), False, "chunked", "capability 7.5"),
  ("auto", SIGLIP, H100._replace(local=False), True, "triton", "cudnn on the GPU itself"),
  ("auto", SIGLIP._replace(splits_tokens=True), H100, True, "triton", ""),
  ("auto", SIGLIP._replace(head_size=64, splits_tokens=True), H100, True, "flash", ""),
  ("auto", SIGLIP._replace(head_size=70), H100, True, "triton", ""),
  ("triton", SIGLIP, H100, True, "triton", "as asked for"),
  ("triton", GEMMA_2, choice.Device(), True, "chunked", "triton needs an NVIDIA GPU"),
  ("chunked", GEMMA_2._replace(tokens=8), choice.Device(), False, "chunked", "as asked for"),
  ("plain", GEMMA_2, H100, True, "plain", "as asked for"),
  ("cudnn", GEMMA_2, H100, True, "flash", "cudnn has no soft-cap"),
  ("cudnn", GEMMA_1, H100, True, "cudnn", "as asked for"),
  ("cudnn", GEMMA_1, choice.Device("gpu", 8.0), True, "triton", "up to 128 here, not of 256"),
  ("flash", GEMMA_2, H100, True, "flash", "as asked for"),
  ("flash", GEMMA_2, H100, False, "triton", "needs tokamax"),
]


def test_cases(monkeypatch):
  for wanted, shape, device, installed, name, why in CASES:
    monkeypatch.setattr(flash, "installed", lambda installed=installed: installed)
    found = choice.choose(wanted, shape, device)
    assert (found.name, why in found.why) == (name, True), (wanted, shape, device, found)


def test_what_was_found_wrong_is_not_chosen(monkeypatch):
  monkeypatch.setattr(flash, "installed", lambda: True)
  wrong = {"flash": "gave wrong numbers"}
  found = choice.choose("auto", GEMMA_2, H100, wrong)
  assert found == ("triton", "4,608 tokens; flash gave wrong numbers")
  found = choice.choose("auto", GEMMA_2, H100, wrong | {"triton": "failed"})
  assert found == ("chunked", "4,608 tokens; flash gave wrong numbers; triton failed")


@pytest.mark.parametrize(
  ("capability", "softcap", "head_size", "own"),
  [(9.0, 50.0, 256, False), (9.0, 50.0, 128, True), (9.0, 0.0, 256, True), (10.0, 50.0, 256, True)],
)
def test_whose_backward_pass_follows_flash(capability, softcap, head_size, own):
  assert flash.own_backward(capability, softcap, head_size) == own
