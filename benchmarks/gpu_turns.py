"""pgjax and transformers with PEFT in turns, for benchmarks/gpu.py.

Both sides of a case keep their memory between their turns where it is enough for both. Else a side
that has had its turn frees it: transformers its tensors, pgjax by the end of its process, because
JAX's allocator returns nothing before; what is compiled is then read from the compilation cache.
Weights and texts are random, each side's own. Peaks are of each framework's allocator (of the
process on a CPU), pgjax's with the making of random weights. big_vision's step is not measured: it
needs its checkout and TensorFlow, which pip does not install from one name.
"""

import json
import re
import statistics
import subprocess
import time
from typing import Any

from benchmarks import gpu_cases
from benchmarks.side import ROOT, Side, first_line

NAMES = PGJAX, TRANSFORMERS = ("pgjax", "transformers")
SIDES = ROOT / "benchmarks" / "gpu_sides.py"
_NAMES = ("full_224_b8", "lora_224_b32", "greedy_b64", "beam3_b64", "lora_224_b8")
_ALL = {case.name: case for case in [*gpu_cases.STEPS, *gpu_cases.DECODES]}
CASES = [_ALL[name] for name in _NAMES]
COLUMNS = (
  "case", "batch", *[f"{name} ms" for name in NAMES], "times as fast",
  *[f"{name} a second" for name in NAMES], *[f"{name} GB" for name in NAMES],
  *[f"{name} loss" for name in NAMES], "in memory",
)  # fmt: skip
ROUNDS, STEPS = 3, 4
_MODULES = ("torch", "transformers", "peft")


def missing(python: str) -> list[str]:
  """Modules of the transformers side that this interpreter does not have."""
  code = f"import importlib.util as u; print(*[m for m in {_MODULES} if not u.find_spec(m)])"
  return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split()


def chosen(only: str) -> list[gpu_cases.Case]:
  """The cases that --only names: "transformers" is all, "transformers_full_224_b8" one of them."""
  names = {case.name: (TRANSFORMERS, f"{TRANSFORMERS}_{case.name}") for case in CASES}
  return [case for case in CASES if any(re.fullmatch(only, name) for name in names[case.name])]


class CaseError(Exception):
  """A side's error, as it reported it."""


class Turns:
  """The processes of both sides, which a run's cases share."""

  def __init__(self, pythons: tuple[str, str], device: str, tiny: bool):
    """pythons: of both sides; device: "cpu" or "gpu"."""
    self._pythons = dict(zip(NAMES, pythons, strict=True))
    self._spec = dict(device=device, tiny=tiny)
    self._sides: dict[str, Side] = {}
    self._loaded: dict[str, dict[str, Any]] = {}  # The first reply of a side that holds the case.
    self._peaks: dict[str, float] = {}
    self._apart = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for side in list(self._sides):
      self._drop(side)

  def missing(self) -> list[str]:
    """Modules that the interpreter of transformers does not have."""
    return missing(self._pythons[TRANSFORMERS])

  def measure(self, case: gpu_cases.Case) -> list[Any]:
    """One row of the table."""
    case = gpu_cases.sized(case, self._spec["tiny"])
    request = json.dumps(dict(name=case.name, batch=case.batch))
    steps = 1 if "method" in case.fields or self._spec["tiny"] else STEPS
    self._apart, self._peaks = False, {}
    seconds, first, failed = {side: [] for side in NAMES}, {}, {}
    for number in range(ROUNDS):
      for side in NAMES if number % 2 == 0 else NAMES[::-1]:
        if side in failed:
          continue
        try:
          first[side] = self._load(side, request)
          reply = self._sides[side].answer(f"steps {steps}")
          seconds[side].append(reply["seconds"] / steps)
        except (CaseError, OSError, ValueError, SystemExit) as error:
          failed[side] = str(error) if isinstance(error, CaseError) else first_line(error)
          self._drop(side)
    for side in list(self._loaded):
      self._unload(side)
    medians = {s: statistics.median(times) for s, times in seconds.items() if s not in failed}
    return self._row(case, medians, first, failed)

  def _load(self, side, request):
    """The case's first reply, from memory or from a start; makes room where it must."""
    if side in self._loaded:
      return self._loaded[side]
    others = [other for other in self._loaded if other != side]
    if self._apart:
      for other in others:
        self._unload(other)
      others = []
    reply = self._answer(side, request)
    # One that did start may run slowly: torch frees and asks again at each step.
    if others and ("error" in reply or reply.get("retries")):
      self._apart = True
      self._loaded |= {} if "error" in reply else {side: reply}
      for loaded in list(self._loaded):
        self._unload(loaded)
      reply = self._answer(side, request)
    if "error" in reply:
      raise CaseError(reply["error"])
    self._loaded[side] = reply
    return reply

  def _answer(self, side, request):
    if side not in self._sides:
      self._sides[side] = Side(side, self._pythons[side], self._spec, SIDES)
    reply = self._sides[side].answer(request)
    if "error" in reply and side == PGJAX:
      self._drop(side)
    return reply

  def _unload(self, side):
    """Frees what a side holds, and stores its peak."""
    del self._loaded[side]
    try:
      memory = self._sides[side].answer("end")
      self._peaks[side] = max(self._peaks.get(side, 0), memory["peak_step"])
      self._sides[side].answer()  # Its memory is free.
    except SystemExit:  # It ended by itself, which frees its memory, too.
      self._drop(side)
    if side == PGJAX:
      self._drop(side)

  def _drop(self, side):
    self._loaded.pop(side, None)
    if process := self._sides.pop(side, None):
      process.close()

  def _row(self, case, medians, first, failed):
    times = [failed.get(s) or f"{1e3 * medians[s]:.1f}" for s in NAMES]
    ratio = "" if failed else f"{medians[TRANSFORMERS] / medians[PGJAX]:.2f}"
    rates, losses, peaks = [], [], []
    for side in NAMES:
      count = case.batch * first.get(side, {}).get("tokens", 1)
      rates.append(f"{count / medians[side]:,.1f}" if side in medians else "")
      loss = first.get(side, {}).get("losses")
      losses.append(f"{loss[0]:.3f}" if loss else "")
      peaks.append(f"{self._peaks[side] / 1e9:.2f}" if side in self._peaks else "")
    both = "" if failed else "one at a time" if self._apart else "both"
    return [case.name, case.batch, *times, ratio, *rates, *peaks, *losses, both]


def table(report: Any, cases: list[gpu_cases.Case], turns: Turns, end: float) -> None:
  """Writes the rows of the cases that start before `end` of time.monotonic()."""
  if lacking := turns.missing():
    report.line(f"\nNot compared with transformers, whose Python has no {', '.join(lacking)}.")
    return
  report.table("In turns with transformers and PEFT", COLUMNS)
  for case in cases:
    over = time.monotonic() > end
    row = [case.name, case.batch, gpu_cases.NO_TIME, *[""] * (len(COLUMNS) - 3)]
    report.row(row if over else turns.measure(case))
