"""What does a run log, and how fast is it? Lines, a progress bar, metrics.jsonl, TensorBoard.

Measured values stay on the device until a logging step, which fetches, checks and writes those of
all steps since the last one. A value that is not finite ends the run.
"""

import contextlib
import json
import math
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import msgspec
import tqdm

from pgjax import disk
from pgjax.errors import UserError
from pgjax.formats import typed_json
from pgjax.training import startup, tensorboard

WAIT_SECONDS = 30.0  # How often a long wait is reported.
BAR_FORMAT = "{percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
_BETWEEN = "Config, data, checkpoints"  # What is no phase with a name of its own.
LINE_SECONDS = 5.0  # Without a terminal: at least this long between two progress lines.


class NotFiniteError(UserError):
  """A measured value of a step is infinite or not a number."""


class Work(NamedTuple):
  """The work of one step over all devices, from which rates are computed."""

  examples: int
  tokens: int
  flops: float
  peak_flops: float | None  # Total of all devices; None for unknown ones.


class Log:
  """The output of one run. Without a workdir, or off the main process, it writes no file."""

  def __init__(self, workdir: pathlib.Path | None, *, main: bool, whole_process: bool = True):
    """Opens no file; `start` does. whole_process: the run began when the process did."""
    self._workdir, self._main, self._whole = workdir if main else None, main, whole_process
    self._rows = self._board = self._bar = None
    self._pending: list[tuple[int, Mapping[str, Any]]] = []
    self._phases = startup.Phases()
    self._phases.end("Imports and devices")
    self._restart_clock(0)

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    if self._main:
      with _outlived():
        tqdm.tqdm.write(text)
        sys.stdout.flush()

  def start(
    self, step: int, *, evaluated: bool, total_steps: int, every_steps: int, work: Work
  ) -> None:
    """Opens the files to go on after `step`; removes rows that a killed run wrote after it.

    evaluated: the evaluations after `step` are done, so their rows stay.
    """
    self._total_steps, self._every_steps, self._work = total_steps, every_steps, work
    self._first = True
    self._phases.end(_BETWEEN)
    self._restart_clock(step)
    self._last_line = -math.inf
    if self._workdir is not None:
      path = self._workdir / "metrics.jsonl"
      with disk.disk_errors(path):
        if dropped := truncate_after(path, step, evaluated=evaluated):
          self.say(f"{path}: {dropped} lines are no rows of metrics, and were removed.")
        self._rows = path.open("a")
        self._board = tensorboard.Board(self._workdir / "tensorboard", purge_step=step + 1)
    if self._main and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps, initial=step, dynamic_ncols=True, bar_format=BAR_FORMAT
      )

  def step(self, step: int, measured: Mapping[str, Any], *, waited_seconds: float) -> None:
    """Takes the device scalars of a step; only a logging step reads them."""
    self._pending.append((step, measured))
    self._waited += waited_seconds
    if self._bar is not None:
      with _outlived():
        self._bar.update(1)
    if self._first or step % self._every_steps == 0 or step == self._total_steps:
      self.fetch()

  def fetch(self) -> None:
    """Waits for the steps so far, checks and writes their values; also called before each save."""
    if not self._pending:
      return
    pending, self._pending = jax.device_get(self._pending), []
    rows = [dict(step=s) | {name: float(value) for name, value in m.items()} for s, m in pending]
    for i, row in enumerate(rows):
      bad = [name for name, value in row.items() if not math.isfinite(value)]
      if bad:
        self._write(rows[:i])
        raise _not_finite(row, sorted(bad, key=lambda name: name != "training_loss"))
    rows[-1] |= self._rates(rows[-1]["step"])
    self._write(rows)
    self._show(rows[-1])

  def scores(self, step: int, scores: Mapping[str, int | float]) -> None:
    """Logs an evaluation of the parameters after `step` steps."""
    self._write([dict(step=step) | dict(scores)])
    self.say(f"step {step:>6}  " + "  ".join(f"{name} {v:.4g}" for name, v in scores.items()))

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """Excludes time that is not training (evaluation, saving) from the rates."""
    began = time.monotonic()
    yield
    self._aside += time.monotonic() - began

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Reports a long wait now and then, and how long it took."""
    self._phases.end(_BETWEEN)
    began, done = time.monotonic(), threading.Event()

    def report():
      while not done.wait(WAIT_SECONDS):
        self.say(f"{what}: {time.monotonic() - began:.0f} s so far ...")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
    self._phases.end(what)
    self.say(f"{what}: {time.monotonic() - began:.1f} s")

  def close(self) -> None:
    """Closes the bar and the files; steps that were not fetched are not written."""
    for output in (self._bar, self._rows, self._board):
      if output is not None:
        with contextlib.suppress(OSError):  # A full disk, which has been reported.
          output.close()
    self._rows = self._board = self._bar = None

  def _restart_clock(self, step: int) -> None:
    self._clock, self._clock_step = time.monotonic(), step
    self._waited = self._aside = 0.0

  def _rates(self, step: int) -> dict[str, float]:
    """Averages since the last logging step; the first step does not measure speed."""
    seconds = time.monotonic() - self._clock - self._aside
    steps, work = step - self._clock_step, self._work
    rates = dict(peak_memory_bytes=_peak_memory_bytes())
    if self._first:
      self._first = False
      if self._whole:
        self._phases.end("First step")
        self.say(self._phases.table())
    elif steps:
      per_step = max(seconds, 1e-9) / steps
      rates |= dict(seconds_per_step=per_step, input_wait=self._waited / max(seconds, 1e-9))
      rates["examples_per_second"] = work.examples / per_step
      rates["tokens_per_second"] = work.tokens / per_step
      if work.peak_flops:
        rates["mfu"] = work.flops / per_step / work.peak_flops
    self._restart_clock(step)
    return rates

  def _write(self, rows: Iterable[Mapping[str, int | float]]) -> None:
    if self._rows is None:
      return
    with disk.disk_errors(self._workdir):
      for row in rows:
        self._rows.write(json.dumps(row) + "\n")
        self._board.add({n: value for n, value in row.items() if n != "step"}, row["step"])
      self._rows.flush()
      self._board.flush()

  def _show(self, row: Mapping[str, int | float]) -> None:
    left = self._total_steps - row["step"]
    text = _described(row, left)
    if self._bar is not None:
      with _outlived():
        self._bar.set_postfix_str(text)
    elif not left or time.monotonic() - self._last_line >= LINE_SECONDS:
      self._last_line = time.monotonic()
      self.say(f"step {row['step']:>6}/{self._total_steps}  {text}")


def _outlived() -> contextlib.AbstractContextManager:
  """A run outlives its terminal, and whoever reads its lines."""
  return contextlib.suppress(OSError, ValueError, AttributeError)


def _not_finite(row: Mapping[str, int | float], bad: list[str]) -> NotFiniteError:
  also = f" (and {', '.join(bad[1:])} with it)" if bad[1:] else ""
  return NotFiniteError(
    f"{bad[0]} became {row[bad[0]]}{also} at step {row['step']}, and the run stops here. The same"
    " start would end the same way: lower config.lr, clip with config.grad_clip_norm, or look at"
    " the data of that step."
  )


def _described(row: Mapping[str, int | float], steps_left: int) -> str:
  """A row of metrics.jsonl as a progress line."""
  rates, end = [], []
  if "seconds_per_step" in row:
    rates = [f"{short(row[f'{unit}_per_second'])} {unit}/s" for unit in ("examples", "tokens")]
    rates += [f"MFU {row['mfu']:.1%}"] if "mfu" in row else []
    rates += [f"input wait {row['input_wait']:.1%}"]
    end = [f"{duration(steps_left * row['seconds_per_step'])} left"] if steps_left else []
  memory = f"memory {row['peak_memory_bytes'] / 2**30:.2f} GiB"
  return "  ".join([f"loss {row['training_loss']:.4f}", *rates, memory, *end])


def short(number: float) -> str:
  """A rate with three digits, such as 1.23k."""
  for limit, unit in ((1e6, "M"), (1e3, "k")):
    if number >= limit:
      return f"{number / limit:.3g}{unit}"
  return f"{number:.3g}"


def duration(seconds: float) -> str:
  """3h05, 12m30s, 45s."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02}"
  return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _peak_memory_bytes() -> int:
  """The peak of the fullest local device; of this process where devices don't report it (CPU)."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def append_scores(workdir: pathlib.Path, step: int, scores: Mapping[str, int | float]) -> None:
  """Adds an evaluation outside the run to the run's TensorBoard, in a folder of its own."""
  # TensorBoard follows only the newest event file of a folder.
  with contextlib.closing(tensorboard.Board(workdir / "tensorboard" / "evaluate")) as board:
    board.add(scores, step)


class _Row(msgspec.Struct):
  step: typed_json.Count
  training_loss: Any = msgspec.UNSET


def truncate_after(path: pathlib.Path, step: int, *, evaluated: bool) -> int:
  """Removes the rows after `step`, and what is not a row; returns the number of the latter.

  A last line that a killed run did not finish is not counted.
  """
  if not path.exists():
    return 0
  rows, odd = [], 0
  lines = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    try:
      row = typed_json.decode(line, _Row, path, nan=True)
    except UserError:
      odd += number < len(lines)
      continue
    trained = row.training_loss is not msgspec.UNSET
    if row.step < step or (row.step == step and (trained or evaluated)):
      rows.append(line + b"\n")
  replacement = path.with_suffix(".tmp")
  replacement.write_bytes(b"".join(rows))
  replacement.replace(path)
  return odd
