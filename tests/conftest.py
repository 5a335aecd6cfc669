"""What every test runs on: eight simulated CPU devices, one compilation cache, small golden models.

pgjax is not imported here: the jaxtyping hook named in pyproject.toml has to be in place before.
"""

import importlib.metadata
import json
import os
import pathlib
import signal
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Before jax is imported. `make test-gpu` sees the real devices instead.
if "PGJAX_TEST_REAL_DEVICES" not in os.environ:
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_force_host_platform_device_count" not in flags:
    flags = f"{flags} --xla_force_host_platform_device_count=8"
  # Compiling is most of what tests do, running what was compiled takes milliseconds: six times
  # faster without LLVM's optimizations. XLA aborts on a flag it has not, so by tried version.
  jaxlib = importlib.metadata.version("jaxlib")
  if jaxlib.startswith(("0.10.", "0.12.")):
    flags += " --xla_backend_optimization_level=0"
    # Eight devices share the cores with all else; XLA ends a process after 40 s of waiting.
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
  if jaxlib.startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
  os.environ["XLA_FLAGS"] = flags.strip()

# Workers, and programs that tests start, share what was compiled, within and across test runs.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"pgjax-test-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))

# Programs that tests start inherit that nohup ignores it; a handler becomes the default in them.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
  signal.signal(signal.SIGHUP, lambda *_: None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

GOLDEN = pathlib.Path(os.environ.get("PGJAX_GOLDEN_DIR", ROOT / "tests/golden"))


@pytest.fixture(scope="session")
def golden():
  """golden("paligemma2_adam") -> (meta dict, flat dict of the file's arrays)."""

  def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
      arrays = {key: file[key] for key in file.files}
    return json.loads(str(arrays.pop("meta"))), arrays

  return load


@pytest.fixture(scope="session")
def root():
  """The folder that holds pgjax/, configs/ and tests/."""
  return ROOT


def pytest_collection_modifyitems(items):
  """The longest test first: at the end, one worker would wait for the other."""
  items.sort(key=lambda item: "test_notebook" not in item.nodeid)
