"""Which implementation of attention suits a tower on a device, and why?

On NVIDIA GPUs from Ampere on, in bfloat16, "auto" takes our own Triton kernels from 128 tokens on;
for long sequences cuDNN for a tower without mask and soft-cap, and flash on Hopper and Blackwell.
Elsewhere it takes plain attention for short sequences, where scores are small, and chunked for long
ones. Only plain has an array of T x S scores; triton has one of their gradients up to 512 keys.
Modelled and measured: benchmarks/results.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from pgjax.kernels import cudnn, flash

AUTO, PLAIN, CHUNKED = "auto", "plain", "chunked"
TRITON, FLASH, CUDNN = "triton", "flash", "cudnn"
NAMES = (AUTO, PLAIN, TRITON, FLASH, CHUNKED, CUDNN)
KERNELS = (TRITON, FLASH, CUDNN)  # Those that do not run everywhere.
LONG = 1024  # Tokens from which scores are worth avoiding by a loop over blocks of them.
SHORT = 128  # Tokens below which they are not worth a kernel: one block of queries.
MAX_QUERY_ROWS = 64  # Of a key/value head, in decode_attention.py.
MIN_PROGRAMS = 64  # One each for an example's key/value head keep a GPU busy.
MAX_PRODUCT_ROWS = 256  # In quantized_product.py: with more, every tile is decoded too often.
_HALF = ("bfloat16", "float16")


class Device(NamedTuple):
  """What runs the program; local: it is there, and not only compiled for."""

  platform: str = "cpu"
  capability: float | None = None  # Compute capability of an NVIDIA GPU.
  local: bool = True


class Shape(NamedTuple):
  """What one tower asks of attention."""

  tokens: int  # Of an example.
  head_size: int
  dtype: str  # Of queries, keys and values.
  softcap: float = 0.0
  masked: bool = True  # False: all tokens see all.
  splits_tokens: bool = False  # A mesh does.


class Choice(NamedTuple):
  """The implementation, and the reason as the end of a sentence."""

  name: str
  why: str


def device_of(mesh: Any = None) -> Device:
  """The kind of device of a mesh, or of this process without one (or with an abstract one)."""
  devices = getattr(mesh, "devices", None)
  device = jax.devices()[0] if devices is None else devices.flat[0]
  platform = "gpu" if device.platform in ("gpu", "cuda") else device.platform
  capability = getattr(device, "compute_capability", None)
  local = device.client.platform == device.platform and device in jax.devices()
  return Device(platform, float(capability) if platform == "gpu" and capability else None, local)


def choose(wanted: str, shape: Shape, device: Device, without: Mapping[str, str] = {}) -> Choice:
  """The implementation; one that was asked for and does not fit is replaced as by "auto".

  without: implementations that must not be used, and why.
  """
  if wanted in (PLAIN, CHUNKED) and wanted not in without:
    return Choice(wanted, "as asked for")
  if wanted in KERNELS:
    trouble = misfit(wanted, shape, device, without)
    if trouble is None:
      return Choice(wanted, "as asked for")
    instead = choose(AUTO, shape, device, {**without, wanted: trouble})
    return instead._replace(why=f"{wanted} {trouble}; {instead.why}")
  why = f"{shape.tokens:,} tokens"
  no_triton = misfit(TRITON, shape, device, without)
  if shape.tokens < LONG:
    if no_triton is None and shape.tokens >= SHORT:
      return Choice(TRITON, why)
    least = LONG if no_triton else SHORT
    return Choice(PLAIN, f"{why} are fewer than {least:,}")
  if not shape.masked and misfit(CUDNN, shape, device, without) is None:
    return Choice(CUDNN, f"{why} without mask and soft-cap")
  if not (shape.masked or misfit(CUDNN, shape, device._replace(local=True), without)):
    why += "; cudnn on the GPU itself"
  no_flash = misfit(FLASH, shape, device, without)
  pads = shape.head_size % 64 > 0  # To a multiple of 64: 72 to 128, almost twice the products.
  if no_flash is None and not (pads and no_triton is None):
    return Choice(FLASH, why)
  if no_triton is None:
    return Choice(TRITON, f"{why}; flash {no_flash}" if no_flash else why)
  also = "" if no_triton == no_flash else f"; triton {no_triton}"
  return Choice(CHUNKED, f"{why}; flash {no_flash}{also}")


def attends_to_cache(
  wanted: str, batch: int, rows: int, kv_heads: int, dtype: str, device: Device
) -> bool:
  """Whether attention of new tokens to a cache is kernels/decode_attention.py.

  batch: of one device; rows: queries of a key/value head; dtype: of queries and of the cache.
  """
  fits = rows <= MAX_QUERY_ROWS and batch * kv_heads >= MIN_PROGRAMS
  return wanted != PLAIN and fits and runs_triton(dtype, device)


def multiplies_codes(rows: int, dtype: str, device: Device, tensor: int) -> bool:
  """Whether products of so many rows a device with quantized matrices are decoded inside.

  tensor: devices that share heads, and would need a part of the codes each.
  """
  return rows <= MAX_PRODUCT_ROWS and tensor == 1 and runs_triton(dtype, device)


def runs_triton(dtype: str, device: Device) -> bool:
  """Whether it is an NVIDIA GPU with products in this dtype, bfloat16."""
  return dtype == "bfloat16" and device.platform == "gpu" and (device.capability or 0) >= 8


def misfit(name: str, shape: Shape, device: Device, without: Mapping[str, str] = {}) -> str | None:
  """Why one of KERNELS cannot be used, as the end of a sentence; None if it can."""
  if name in without:
    return without[name]
  if device.platform != "gpu" or device.capability is None:
    return "needs an NVIDIA GPU"
  if shape.dtype not in _HALF:
    return f"computes in bfloat16, not in {shape.dtype}"
  return _MISFITS[name](shape, device)


def _misfit_triton(shape, device):
  if not runs_triton("bfloat16", device):
    return f"needs compute capability 8.0, and the GPU has {device.capability}"
  if shape.dtype != "bfloat16":
    return f"computes in bfloat16, not in {shape.dtype}"
  return None


def _misfit_flash(shape, device):
  if int(device.capability) not in map(int, flash.CAPABILITIES):
    return f"has no kernel for compute capability {device.capability}, only for 9.0 and 10.0"
  if not flash.installed():
    return "needs tokamax (pip install -r requirements-cuda.txt)"
  return None


def _misfit_cudnn(shape, device):
  widest = cudnn.WIDEST_HEAD.get(int(device.capability), 0)
  if shape.softcap:
    return f"has no soft-cap, and the tower has one of {shape.softcap:g}"
  if shape.head_size % 8 or shape.head_size > widest:
    return f"takes heads of a multiple of 8 up to {widest} here, not of {shape.head_size}"
  if shape.splits_tokens:
    return "does not split the tokens of an example over devices"
  if not device.local:
    return "cannot be compiled without the GPU"
  return None


_MISFITS = {TRITON: _misfit_triton, FLASH: _misfit_flash, CUDNN: _misfit_cudnn}
