"""A program that is measured in turns with another, in its own process; stdlib only."""

import json
import os
import pathlib
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Side:
  """The parent's end of a program that follows step_sides.serve: it replies, and waits."""

  def __init__(self, name: str, python: str, spec: dict[str, Any], program: pathlib.Path):
    """Starts `program NAME SPEC`, which loads."""
    environment = dict(
      os.environ,
      PYTHONPATH=str(ROOT),
      HF_HUB_OFFLINE="1",
      JAX_PLATFORMS=dict(cpu="cpu", gpu="cuda")[spec["device"]],
      XLA_PYTHON_CLIENT_PREALLOCATE="false",
      OMP_WAIT_POLICY="PASSIVE",  # The waiting side must not use a core.
      TF_CPP_MIN_LOG_LEVEL="3",
      PYTHONWARNINGS="ignore::FutureWarning",  # Of transformers.
    )
    command = [python, str(program), name, json.dumps(spec)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

  def answer(self, request: str | None = None) -> dict[str, Any]:
    """Its next message."""
    try:
      if request:
        print(request, file=self._process.stdin, flush=True)
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      raise SystemExit(f"{self._process.args[2]} ended with {self._process.wait()}; see above.")
    return json.loads(line)

  def end(self) -> dict[str, Any]:
    """Its memory, in bytes; ends the process."""
    memory = self.answer("end")
    self.close()
    return memory

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def first_line(error: BaseException) -> str:
  """What a table can hold of an error."""
  return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:160]
