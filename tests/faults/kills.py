r"""Kills a run at random moments, resumes it, and compares it with one that nothing interrupted.

python tests/faults/kills.py --kills=50

The moments are in its start, compilation, steps, saves, evaluation and while it restores. Each row
has the moments at which a run was killed; the last one, how many runs ended bit-equal: in their
losses, answers and the sums of all arrays of the last checkpoint. A run that is killed while it
compiles has no compiled programs from before; one that restores has a checkpoint, or it is not
counted as killed there.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_run  # noqa: E402

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")

MOMENTS = ("start", "compile", "step", "save", "evaluate", "restore")


def result(workdir):
  """What must be equal, bit for bit."""
  return (
    tiny_run.losses(workdir),
    tiny_run.state_sums(workdir),
    tiny_run.answers(workdir / "evals/val"),
  )


class Run:
  """A run and its output."""

  def __init__(self, workdir, **environment):
    self.workdir, self.output = workdir, ""
    self.process = subprocess.Popen(
      [sys.executable, *tiny_run.train_arguments(workdir)],
      cwd=ROOT,
      env=os.environ | tiny_run.environment(devices=1) | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self):
    for line in self.process.stdout:
      self.output += line

  def wait(self, until=lambda: False):
    """The exit status; None if `until` is true before."""
    while self.process.poll() is None and not until():
      time.sleep(0.002)
    return self.process.poll()

  def rows(self):
    """How many steps are logged."""
    path = self.workdir / "metrics.jsonl"
    return path.read_text().count("training_loss") if path.exists() else 0

  def kill_at(self, moment, rng, whole):
    """SIGKILL around the moment; returns the one at which it came, None if the run had ended."""
    row, before = rng.randrange(1, tiny_run.STEPS), self.rows()
    has_checkpoint = any((self.workdir / "checkpoints").glob("[0-9]*"))
    until = dict(
      start=lambda: True,
      restore=lambda: " train (" in self.output,
      compile=lambda: "First example" in self.output,
      step=lambda: self.rows() >= row,
      save=lambda: list(self.workdir.glob("checkpoints/*tmp*")),
      evaluate=lambda: self.rows() >= tiny_run.STEPS,
    )[moment]
    if self.wait(until) is None:
      time.sleep(rng.uniform(0, dict(start=whole / 2, compile=3.0, restore=0.3).get(moment, 0.1)))
    ended = self.process.poll() is not None
    self.process.kill()
    self.process.wait()
    self._reader.join()
    if ended:
      return None
    if " train (" not in self.output:
      return "start"
    if "First example" not in self.output:
      return "restore" if has_checkpoint and "Resuming" not in self.output else "start"
    if moment in ("start", "restore", "compile"):
      return "compile" if self.rows() <= before else "step"
    return moment


def main():
  """Prints a row a run; the exit status is 1 if one of them differs."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--per_run", type=int, default=5, help="kills of one run before it may end")
  parser.add_argument("--seed", type=int, default=random.randrange(2**32))
  args = parser.parse_args()
  rng, phases, equal, runs = random.Random(args.seed), collections.Counter(), 0, 0
  folder = pathlib.Path(tempfile.mkdtemp())
  began = time.monotonic()
  assert Run(folder / "warm").wait() == 0  # Fills the cache of compiled programs.
  began = time.monotonic()
  assert Run(folder / "straight").wait() == 0
  whole, expected = time.monotonic() - began, result(folder / "straight")
  print(f"seed {args.seed}; a run takes {whole:.1f} s")
  while sum(phases.values()) < args.kills:
    workdir, killed = folder / f"run{runs}", []
    for number in range(args.per_run):
      moment = rng.choice(MOMENTS)
      empty = dict(JAX_COMPILATION_CACHE_DIR=str(folder / f"compiled{runs}-{number}"))
      run = Run(workdir, **(empty if moment == "compile" else {}))
      if came := run.kill_at(moment, rng, whole):
        killed.append(came)
    assert Run(workdir).wait() == 0
    same = result(workdir) == expected
    runs, equal = runs + 1, equal + same
    phases.update(killed)
    print(f"run {runs}: killed in {', '.join(killed)}: {'equal' if same else 'DIFFERENT'}")
    shutil.rmtree(workdir)
  print(f"{sum(phases.values())} kills {dict(phases)}: {equal} of {runs} runs bit-equal")
  return int(equal < runs)


if __name__ == "__main__":
  sys.exit(main())
