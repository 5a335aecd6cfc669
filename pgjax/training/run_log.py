"""What does a run say about itself, and how fast is it? Lines, a progress bar, metrics.jsonl.

Only the main process writes. Measured values stay on the device until a logging step, where those
of all steps since the last one are fetched together, checked and written: one row a step in
metrics.jsonl, so that two runs can be compared step by step. A value that is not finite ends the
run there. How long anything took is measured here and nowhere else.
"""

import contextlib
import json
import math
import os
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import msgspec
import tensorboardX
import tqdm

from pgjax import disk
from pgjax.errors import UserError
from pgjax.formats import typed_json

STILL_SECONDS = 30.0  # How often a long wait says that it goes on.
BAR_FORMAT = "{percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
LINE_SECONDS = 5.0  # Without a terminal: at most one progress line in so many seconds.


class Work(NamedTuple):
  """What one step does, over all devices: the rates are made of these."""

  examples: int
  tokens: int
  flops: float
  peak_flops: float | None  # Of all devices together; None where the device is not known.


class Log:
  """The output of one run. Without a workdir, or off the main process, it writes no file."""

  def __init__(self, workdir: pathlib.Path | None, *, main: bool, whole_process: bool = True):
    """Opens nothing yet; `start` does, when it is known which step the run goes on from.

    whole_process: the run began when the process did.
    """
    self._workdir, self._main, self._whole = workdir if main else None, main, whole_process
    self._rows = self._board = self._bar = None
    self._pending: list[tuple[int, Mapping[str, Any]]] = []
    self._restart_clock(0)

  def say(self, text: str) -> None:
    """A line for whoever watches; above the progress bar, if there is one."""
    if self._main:
      with tqdm.tqdm.external_write_mode(file=sys.stdout):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

  def start(
    self, step: int, *, evaluated: bool, total_steps: int, every_steps: int, work: Work
  ) -> None:
    """The loop goes on after `step`; what a killed run wrote after that goes away.

    `evaluated`: the evaluations after `step` are done, and their rows stay.
    """
    self._total_steps, self._every_steps, self._work = total_steps, every_steps, work
    self._first = True
    self._restart_clock(step)
    self._last_line = -math.inf
    if self._workdir is not None:
      path = self._workdir / "metrics.jsonl"
      with disk.disk_errors(path):
        forget_after(path, step, evaluated=evaluated)
        self._rows = path.open("a")
        board = self._workdir / "tensorboard"
        self._board = tensorboardX.SummaryWriter(str(board), purge_step=step + 1)
    if self._main and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total_steps, initial=step, dynamic_ncols=True, bar_format=BAR_FORMAT
      )

  def step(self, step: int, measured: Mapping[str, Any], *, waited_seconds: float) -> None:
    """Takes the device scalars of a step; they are read only if this is a logging step."""
    self._pending.append((step, measured))
    self._waited += waited_seconds
    if self._bar is not None:
      self._bar.update(1)
    if self._first or step % self._every_steps == 0 or step == self._total_steps:
      self.fetch()

  def fetch(self) -> None:
    """Waits for the steps so far, checks their values and writes them; also before each save."""
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
    """The result of an evaluation of the parameters after `step` steps."""
    self._write([dict(step=step) | dict(scores)])
    self.say(f"step {step:>6}  " + "  ".join(f"{name} {v:.4g}" for name, v in scores.items()))

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """Time that is not training (evaluation, saving) and does not count in the rates."""
    began = time.monotonic()
    yield
    self._aside += time.monotonic() - began

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Says what is waited for, every now and then that it still is, and how long it took."""
    began, done = time.monotonic(), threading.Event()

    def still():
      while not done.wait(STILL_SECONDS):
        self.say(f"{what}: {time.monotonic() - began:.0f} s so far ...")

    thread = threading.Thread(target=still, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
    self.say(f"{what}: {time.monotonic() - began:.1f} s")

  def close(self) -> None:
    """Ends the bar and the files; steps that were not fetched are not written."""
    for thing in (self._bar, self._rows, self._board):
      if thing is not None:
        thing.close()
    self._rows = self._board = self._bar = None

  def _restart_clock(self, step: int) -> None:
    self._clock, self._clock_step = time.monotonic(), step
    self._waited = self._aside = 0.0

  def _rates(self, step: int) -> dict[str, float]:
    """Averages since the last logging step; the first step alone is no measure of speed."""
    seconds = time.monotonic() - self._clock - self._aside
    steps, work = step - self._clock_step, self._work
    rates = dict(peak_memory_bytes=peak_memory_bytes())
    if self._first:
      self._first = False
      if self._whole:
        since = seconds_since_process_start()
        self.say(f"The first step was done {since:.1f} s after the command.")
    elif steps:
      per_step = max(seconds, 1e-9) / steps
      rates |= dict(seconds_per_step=per_step, input_wait=self._waited / max(seconds, 1e-9))
      rates |= dict(
        examples_per_second=work.examples / per_step, tokens_per_second=work.tokens / per_step
      )
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
        for name, value in row.items():
          if name != "step":
            self._board.add_scalar(name, value, row["step"])
      self._rows.flush()

  def _show(self, row: Mapping[str, int | float]) -> None:
    left = self._total_steps - row["step"]
    text = describe(row, left)
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    elif not left or time.monotonic() - self._last_line >= LINE_SECONDS:
      self._last_line = time.monotonic()
      self.say(f"step {row['step']:>6}/{self._total_steps}  {text}")


def _not_finite(row: Mapping[str, int | float], bad: list[str]) -> UserError:
  also = f" (and {', '.join(bad[1:])} with it)" if bad[1:] else ""
  return UserError(
    f"{bad[0]} became {row[bad[0]]}{also} at step {row['step']}; the run stops here, and what was "
    "saved before is intact. The same start would end the same way: lower config.lr, clip with "
    "config.grad_clip_norm, or look at the data of that step."
  )


def describe(row: Mapping[str, int | float], steps_left: int) -> str:
  """A row of metrics.jsonl, for people."""
  parts = [f"loss {row['training_loss']:.4f}"]
  if "seconds_per_step" in row:
    parts += [f"{short(row['examples_per_second'])} examples/s"]
    parts += [f"{short(row['tokens_per_second'])} tokens/s"]
    if "mfu" in row:
      parts += [f"MFU {row['mfu']:.1%}"]
    parts += [f"input wait {row['input_wait']:.1%}"]
  parts += [f"memory {row['peak_memory_bytes'] / 2**30:.2f} GiB"]
  if "seconds_per_step" in row and steps_left:
    parts += [f"{duration(steps_left * row['seconds_per_step'])} left"]
  return "  ".join(parts)


def short(number: float) -> str:
  """Three digits are enough for a rate."""
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


def peak_memory_bytes() -> int:
  """The most that any local device has held; where devices don't say (a CPU), this process."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def seconds_since_process_start() -> float:
  """Since the command was typed, with the imports; Linux says when a process started."""
  try:
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return time.process_time()
  return uptime - ticks / os.sysconf("SC_CLK_TCK")


def append_scores(workdir: pathlib.Path, step: int, scores: Mapping[str, int | float]) -> None:
  """The result of an evaluation beside the run, as one more line in the run's TensorBoard.

  In a folder of its own: of several event files in one, TensorBoard reads on in the newest alone.
  """
  board = tensorboardX.SummaryWriter(str(workdir / "tensorboard" / "evaluate"))
  for name, value in scores.items():
    board.add_scalar(name, value, step)
  board.close()


class _Row(msgspec.Struct):
  step: typed_json.Count
  training_loss: Any = msgspec.UNSET


def forget_after(path: pathlib.Path, step: int, *, evaluated: bool) -> None:
  """Keeps the rows up to `step`; the last line of a killed run may be cut off in the middle."""
  if not path.exists():
    return
  kept = []
  for line in path.read_bytes().splitlines():
    with contextlib.suppress(UserError):
      row = typed_json.decode(line, _Row, path, nan=True)
      trained = row.training_loss is not msgspec.UNSET
      if row.step < step or (row.step == step and (trained or evaluated)):
        kept.append(line + b"\n")
  replacement = path.with_suffix(".tmp")
  replacement.write_bytes(b"".join(kept))
  replacement.replace(path)
