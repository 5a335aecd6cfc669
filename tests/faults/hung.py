r"""Takes the disk of the images away from a run, and prints what came of it: a row a case.

python tests/faults/hung.py --processes=2 --workers=1

A FUSE file system that answers nothing is mounted over the folder, in a mount namespace of this
program (needs root). Without a signal the run must name an example and save within two minutes; a
signal to one process must stop and save it within 30 s. The resumed run, with its disk back, must
equal one that nothing disturbed, bit for bit.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from pgjax.data.sources import registry
from tests.faults import runs

PRIVATE, DETACH, NEWNS = 1 << 18 | 1 << 14, 2, 0x20000
LIMITS = {"": 120.0, "TERM": 30.0}
STATUSES = {"": 1, "TERM": 75}


def main():
  """Prints the table; the exit status is 1 if a row fails."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--processes", default="1,2")
  parser.add_argument("--workers", default="0,1")
  parser.add_argument("--signals", default="TERM,none")
  args = parser.parse_args()
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, PRIVATE, None):
    raise OSError(ctypes.get_errno(), "a mount namespace needs root")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="pgjax-hung-"))
  data, failed = write_data(folder), 0
  print("processes workers signal statuses  seconds  resumed  sentences")
  for processes in map(int, args.processes.split(",")):
    start = runs.alone if processes == 1 else runs.by_hand
    run = start(folder / "straight", **settings(data, 0))
    assert not any(run.finish()), run.output
    straight = runs.result(folder / "straight")
    shutil.rmtree(folder / "straight")
    for workers in map(int, args.workers.split(",")):
      for name in args.signals.split(","):
        case = (processes, workers, name.replace("none", ""))
        failed += not row(libc, case, start, folder / "run", data, straight)
        shutil.rmtree(folder / "run", ignore_errors=True)
  print(f"{failed} rows failed." if failed else "All rows are as they must be.")
  shutil.rmtree(folder)
  return int(failed > 0)


def write_data(folder):
  """A JSONL file whose images are files in a folder of their own."""
  source = registry.open(dict(name="easy_vqa", split="train[:60]"))
  (folder / "images").mkdir()
  with (folder / "train.jsonl").open("w") as file:
    for i in range(len(source)):
      row = source[i]
      (folder / f"images/{i}.png").write_bytes(row["image"])
      texts = dict(question=row["question"], answer=row["answer"])
      file.write(json.dumps(texts | dict(image=f"images/{i}.png")) + "\n")
  return folder / "train.jsonl"


def settings(data, workers):
  """Of a run that reads the images again and again."""
  return {
    "input.data": dict(name="jsonl", fname=str(data)),
    "input.num_workers": workers,
    "input.cache_mb": 0,
    "flags": ["--peer_timeout=15"],
  }


@contextlib.contextmanager
def dead(libc, folder):
  """The folder does not answer in this context."""
  device = os.open("/dev/fuse", os.O_RDWR)
  options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
  if libc.mount(b"dead", bytes(folder), b"fuse", 0, options):
    raise OSError(ctypes.get_errno(), "the file system cannot be mounted")
  try:
    yield
  finally:
    libc.umount2(bytes(folder), DETACH)
    os.close(device)


def row(libc, case, start, workdir, data, straight):
  """One row; False if something is wrong, which it lists."""
  processes, workers, name = case
  run, wrong = start(workdir, **settings(data, workers)), []
  try:
    assert run.wait(run.at("stepping")), run.output
    with dead(libc, data.parent / "images"):
      began = time.monotonic()
      time.sleep(3)
      if name:
        os.kill(run.pid(processes - 1), getattr(signal, f"SIG{name}"))
        began = time.monotonic()
      statuses = run.finish(300)
      seconds = time.monotonic() - began
      left = run.left(3)
  finally:
    run.clean_up()
  said, named = runs.sentences(run.output), "train.jsonl, line " in run.output
  wrong += [f"the status is not {STATUSES[name]}"] * (set(statuses) != {STATUSES[name]})
  wrong += ["it took too long"] * (seconds > LIMITS[name])
  wrong += ["no example is named"] * (not name and not named)
  wrong += [f"{len(said)} sentences"] * (len(said) > (1 if name else processes))
  wrong += [f"trace: {runs.trace(run.output)}"] * bool(runs.trace(run.output))
  wrong += [f"left running: {left}"] * bool(left)
  steps, damage = runs.on_disk(workdir)
  wrong += [f"damage: {damage}"] * bool(damage) + ["nothing was saved"] * (not steps)
  run = start(workdir, **settings(data, 0))
  same = not any(run.finish()) and runs.result(workdir) == straight
  wrong += ["the resumed run differs"] * (not same)
  print(
    f"{processes:<9} {workers:<7} {name:<6} {','.join(map(str, statuses)):<9} {seconds:<8.1f}"
    f" {'equal' if same else 'DIFFERS':<8} {' / '.join(said)}",
    *(f"\n  WRONG: {each}" for each in wrong),
    sep="",
    flush=True,
  )
  return not wrong


if __name__ == "__main__":
  sys.exit(main())
