"""Where is data cached that can be computed again?"""

import os
import pathlib

from etils import epy

from pgjax import disk
from pgjax.errors import UserError

with epy.lazy_imports():
  import jax

MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def folder(name: str = "") -> pathlib.Path | None:
  """$PGJAX_CACHE_DIR or ~/.cache/pgjax, or its subfolder `name`; None if it is not writable."""
  path = os.path.join(os.environ.get("PGJAX_CACHE_DIR") or "~/.cache/pgjax", name)
  try:
    return disk.open_folder(path, "PGJAX_CACHE_DIR")
  except (UserError, RuntimeError):  # RuntimeError: there is no home folder.
    return None


def use_compilation_cache() -> str:
  """Stores compiled programs between runs; returns the folder, or "" if none is writable.

  Those that took 0.05 s or more, not JAX's 1 s: a start has a dozen small ones.
  JAX's own JAX_COMPILATION_CACHE_DIR has precedence, then PGJAX_CACHE_DIR, then ~/.cache/pgjax.
  """
  if not jax.config.jax_compilation_cache_dir:
    if (path := folder()) is None:
      return ""
    jax.config.update("jax_compilation_cache_dir", str(path))
  if MIN_SECONDS.upper() not in os.environ:
    jax.config.update(MIN_SECONDS, 0.05)
  return jax.config.jax_compilation_cache_dir
