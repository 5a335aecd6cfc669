"""Memory, peak rates and links of each GPU that pgjax.plan knows, and XLA's description of it.

Sources: openxla's target_config specs and the vendors' data sheets.
"""

import re
from typing import Any, NamedTuple

from pgjax.errors import UserError, did_you_mean


class Gpu(NamedTuple):
  """One kind of GPU. Rates are dense (without sparsity) and of one GPU."""

  kind: str  # A regex over JAX's device_kind.
  capability: tuple[int, int]
  cores: int  # Streaming multiprocessors; the next four are per multiprocessor.
  float32_units: int
  shared_bytes: int
  shared_optin_bytes: int
  threads: int
  l2_bytes: int
  clock_ghz: float
  bandwidth: float  # Bytes a second of its memory.
  memory_bytes: int
  half_flops: float  # FLOP/s in bfloat16; without bfloat16 arithmetic (T4) in float16.
  float32_flops: float  # Of float32 products: in TF32 where the GPU has it, as in XLA.
  link_bandwidth: float  # Bytes a second to other GPUs of the host, one direction.

  @property
  def has_bfloat16(self) -> bool:
    """Older GPUs compute bfloat16 products in float32."""
    return self.capability >= (8, 0)

  def flops(self, dtype: str) -> float:
    """Peak FLOP/s of products in a compute dtype."""
    return self.half_flops if dtype == "bfloat16" and self.has_bfloat16 else self.float32_flops


_HOPPER = ((9, 0), 132, 128, 233472, 232448, 2048, 52428800, 1.98)
_A100 = ((8, 0), 108, 64, 167936, 166912, 2048, 41943040, 1.41)
_ADA = (128, 102400, 101376, 1536)
# The last three figures: NVLink 5, 4 and 3, or PCIe 4 and 3 with 16 lanes.
GPUS = {
  "T4": Gpu(r"\bT4\b", (7, 5), 40, 64, 65536, 65536, 1024, 4194304, 1.59, 0.320e12,
            15_800_000_000, 65e12, 8.1e12, 16e9),
  "L4": Gpu(r"\bL4\b", (8, 9), 58, *_ADA, 50331648, 2.04, 0.300e12,
            23_600_000_000, 121e12, 60e12, 32e9),
  "4090": Gpu(r"\b4090\b", (8, 9), 128, *_ADA, 75497472, 2.52, 1.008e12,
              25_300_000_000, 165e12, 82.6e12, 32e9),
  "A100-40": Gpu(r"\bA100\b.*\b40GB\b", *_A100, 1.555e12, 42331013120, 312e12, 156e12, 300e9),
  "A100-80": Gpu(r"\bA100\b", *_A100, 2.039e12, 85_000_000_000, 312e12, 156e12, 300e9),
  "H100": Gpu(r"\bH100\b", *_HOPPER, 3.352e12, 84942979072, 989e12, 494e12, 450e9),
  "H200": Gpu(r"\bH200\b", *_HOPPER, 4.80e12, 151397597184, 989e12, 494e12, 450e9),
  "B200": Gpu(r"\bB200\b", (10, 0), 148, 128, 233472, 232448, 2048, 132644864, 1.965, 7.672e12,
              191514411008, 2250e12, 1100e12, 900e9),
}  # fmt: skip

# Read when JAX is imported, so XLA compiles for a GPU in a process of its own. Triton's matrix
# products are off because they cannot be compiled without their device.
ENVIRONMENT = {
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}

_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32
  shared_memory_per_block: 49152  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block_optin: {gpu.shared_optin_bytes}
  threads_per_core_limit: {gpu.threads}  core_count: {gpu.cores}  fpus_per_core: {gpu.float32_units}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f}  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}  device_memory_size: {gpu.memory_bytes}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""


def named(name: str) -> str:
  """The key in GPUS of a --device, in upper or lower case."""
  by_upper = {known.upper(): known for known in GPUS}
  if name.upper() not in by_upper:
    longer = [known for known in by_upper if known.startswith(name.upper())]
    hint = f" Did you mean {' or '.join(by_upper[n] for n in longer)}?" if longer else ""
    hint = hint or did_you_mean(name.upper(), GPUS)
    raise UserError(
      f"--device={name} is not known.{hint} For another GPU give --hbm_gb=GIGABYTES instead."
    )
  return by_upper[name.upper()]


def of_kind(device_kind: str) -> Gpu | None:
  """The GPU with this name in JAX ("NVIDIA A100-SXM4-80GB"), or None."""
  return next((gpu for gpu in GPUS.values() if re.search(gpu.kind, device_kind)), None)


def target_config(name: str) -> str:
  """The description of a GPU for XLA's compiler."""
  return _TARGET.format(gpu=GPUS[name], name=name)


def peak_flops(devices: list[Any]) -> float | None:
  """Total half-precision peak, FLOP/s, or None if one device is of an unknown kind."""
  known = [of_kind(device.device_kind) for device in devices]
  return None if None in known else sum(gpu.half_flops for gpu in known)
