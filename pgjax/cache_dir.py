"""Where may a program keep what it can make again?"""

import os
import pathlib

from etils import epy

with epy.lazy_imports():
  import jax


def folder(name: str = "") -> pathlib.Path | None:
  """PGJAX_CACHE_DIR, else ~/.cache/pgjax, or a folder in it; None where nothing can be written."""
  path = pathlib.Path(os.environ.get("PGJAX_CACHE_DIR") or "~/.cache/pgjax") / name
  probe = f".write-test-{os.getpid()}"
  try:
    path = path.expanduser()
    path.mkdir(parents=True, exist_ok=True)
    (path / probe).write_text("this file may be deleted")
    (path / probe).unlink()
  except (OSError, RuntimeError):  # RuntimeError: there is no home folder.
    return None
  return path


def use_compilation_cache() -> str:
  """Compiled programs are kept between runs; returns the folder, or "" where none can be written.

  JAX's own JAX_COMPILATION_CACHE_DIR has precedence, then PGJAX_CACHE_DIR, then ~/.cache/pgjax.
  """
  if jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  path = folder()
  if path is None:
    return ""
  jax.config.update("jax_compilation_cache_dir", str(path))
  return str(path)
