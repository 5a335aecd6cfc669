r"""Lets the disk or the object store of a run fail, and reports what the run does then.

python tests/faults/storage.py --rows='S3.*silent' --jobs=3

A row is a store, a phase and a fault. In each, a run of pgjax.train (or pgjax.evaluate) meets the
fault, then it is over, and the same command is run again: for a bucket on another machine, which
has only the bucket. A row is right if the first command ends with a status of its own and one
sentence, without a trace, and the second one's losses, answers and sums of all arrays are those of
a run that nothing interrupted. Needs s3fs and moto[server]; a full disk is a small tmpfs (root).
"""

import argparse
import concurrent.futures
import contextlib
import copy
import itertools
import json
import os
import pathlib
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bucket_servers  # noqa: E402
import conftest  # noqa: E402, F401  # XLA_FLAGS, which compile fast, and a cache of programs.
import tiny_run  # noqa: E402

LIMIT_SECONDS = 1200
OUTAGE_SECONDS = 20.0
tiny_run.STEPS = 24
SETTINGS = {"total_steps": 24, "ckpt_steps": 8, "keep_ckpt_steps": 8, "evals.val.log_steps": 12}
SETTINGS["evals.val.data"] = dict(name="easy_vqa", split="train[60:68]")
PACE = "0.2"
NETWORK = {  # {name: (fault of the proxy, share of the requests, seconds)}
  "HTTP 500, 20%": ("500", 0.2, float("inf")),
  "HTTP 500, all, 20 s": ("500", 1.0, OUTAGE_SECONDS),
  "HTTP 500, for ever": ("500", 1.0, float("inf")),
  "reset at random": ("reset", 0.5, float("inf")),
  "slow, 2 s late": ("slow", 1.0, float("inf")),
  "silent for ever": ("silent", 1.0, float("inf")),
}
REQUESTS = {  # {phase: the requests with the fault; * is the run's name}
  "saving": "(PUT|POST) /bucket/runs/*/checkpoints/(16|24)/",
  "logging": "(PUT|POST) /bucket/runs/*/(metrics|tensorboard)",
  "evaluating": "(PUT|POST) /bucket/runs/*/evals/",
  "scoring": "(PUT|POST) /bucket/scores/*/",
  "restoring": "(GET|HEAD) /bucket/runs/*/checkpoints/",
  "loading data": "(GET|HEAD) /bucket(/set|.*prefix=set)",
}
# {phase: (where the run waits until the disk is full, bytes that stay free)}
FULL = {
  "saving": ("save 2", 100_000),
  "saving, late": ("save 2", None),
  "logging": ("log 10", 0),
  "evaluating": ("evaluate 1", 0),
  "scoring": ("score 1", 0),
  "restoring": ("restore 1", 0),
  "loading data": ("", 0),
}
BAD = ("Traceback", "Exception ignored", "Task exception", "exception was never retrieved")


class Row(NamedTuple):
  """What happened."""

  store: str
  phase: str
  fault: str
  status: int | None
  lasted: float  # Seconds from the first failure to the end of the command.
  earlier: str  # From which step the second command went on.
  equal: bool
  sentence: str

  def line(self):
    """A row of the table."""
    right = "yes" if self.equal else "NO"
    cells = (self.store, self.phase, self.fault, self.status, f"{self.lasted:.0f} s")
    return f"| {' | '.join(map(str, cells))} | {self.earlier} | {right} | {self.sentence} |"


class Bench:
  """Servers, data and results to compare with."""

  def __init__(self, folder):
    """Runs what nothing interrupts."""
    self.folder, self.numbers = folder, itertools.count(1)
    self.output, self.server = folder / "output.txt", serving()
    write_data(folder / "set")
    self.local = dict(name="jsonl", fname=str(folder / "set/train.jsonl"))
    self.straight, self.stopped = folder / "straight", folder / "stopped"
    other = self.beside("-stopped")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      stopped = pool.submit(other.run, other.train(self.stopped), stop_at=13)
      assert self.run(self.train(self.straight))[0] == 0
      assert stopped.result()[0] == 75
    self.expected = result(self.straight)
    shutil.rmtree(self.stopped / "tensorboard")
    assert self.run(self.score(self.straight, folder / "scores"))[0] == 0
    self.answers = tiny_run.answers(folder / "scores")

  def beside(self, number):
    """One that runs commands at the same time."""
    other = copy.copy(self)
    other.output, other.server = self.folder / f"output{number}.txt", serving()
    return other

  def train(self, workdir, data=None):
    """The command."""
    data = {"input.data": data or self.local, **SETTINGS}
    return ["pgjax.train", *tiny_run.train_arguments(workdir, **data)[2:]]

  def score(self, ckpt, out):
    """The command."""
    return ["pgjax.evaluate", f"--ckpt={ckpt}", f"--out={out}", "--evals=test"]

  def run(self, command, *, stop_at=None, full=None, **env):
    """(status, output); full: a function that is called at the pause."""
    output = self.output
    job = dict(argv=command, env=dict(PACE=PACE, PAUSE="") | env, output=str(output))
    self.server.stdin.write(json.dumps(job) + "\n")
    self.server.stdin.flush()
    child, deadline = int(self.server.stdout.readline()), time.monotonic() + LIMIT_SECONDS
    try:
      while not select.select([self.server.stdout], [], [], 0.02)[0]:
        if time.monotonic() > deadline:
          raise TimeoutError(f"no end after {LIMIT_SECONDS} s")
        if stop_at and tiny_rows(self.stopped) >= stop_at:
          os.kill(child, signal.SIGTERM)
          stop_at = None
        if full and pathlib.Path(env["PAUSE_FILE"]).exists():
          full()
          pathlib.Path(env["PAUSE_FILE"]).unlink()
    except BaseException:
      os.kill(child, signal.SIGKILL)
      self.server.stdout.readline()
      raise
    status, text = int(self.server.stdout.readline()), output.read_text()
    self.log(f"$ {' '.join(command)}\n{text}\n-> {status}\n")
    return status, text

  def log(self, text):
    """Everything that the commands print."""
    with (self.folder / "log.txt").open("a") as file:
      file.write(text)


def serving():
  """Programs with their imports done (paced.py)."""
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  program = [sys.executable, "tests/faults/paced.py", "--serve"]
  env = os.environ | tiny_run.environment(devices=1)
  return subprocess.Popen(program, cwd=ROOT, env=env, **pipes)


def tiny_rows(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("training_loss") if path.exists() else 0


def write_data(folder):
  """24 questions on images of a public package."""
  import easy_vqa

  folder.mkdir()
  images, columns = easy_vqa.get_train_image_paths(), easy_vqa.get_train_questions()
  rows = zip(*(column[:24] for column in columns), strict=True)
  lines = []
  for number, (question, answer, image) in enumerate(rows):
    shutil.copy(images[image], folder / f"{number}.png")
    lines.append(dict(image=f"{number}.png", question=question, answer=answer, id=number))
  (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def result(workdir):
  """What must be equal."""
  return (
    tiny_run.losses(workdir),
    tiny_run.state_sums(workdir),
    tiny_run.answers(workdir / "evals/val"),
  )


def sentence(output):
  """What the user reads about the fault."""
  words = r"error:|cannot be|could not be|takes up to|will be tried again|works again"
  lines = [line for line in output.splitlines() if re.search(words, line)]
  return " / ".join(dict.fromkeys(line[:230] for line in lines[-2:])) or "-"


def compared(bench, row, status, output, began, again, workdir, scores=None):
  """The Row, after the second command."""
  seconds = time.monotonic() - began
  trace = [bad for bad in BAD if bad in output]
  again_status, again_output = again()
  resumed = re.search(r"Resuming from step (\d+)", again_output)
  try:
    if scores:
      equal = tiny_run.answers(scores()) == bench.answers
    else:
      equal = result(workdir()) == bench.expected
  except (OSError, AssertionError, ValueError) as error:
    bench.log(f"{error!r}\n")
    equal = False
  right = equal and not trace and again_status == 0 and status in (0, 1, 75)
  earlier = f"step {resumed[1]}" if resumed else "complete" if status == 0 else "none before"
  return Row(*row, status, seconds, earlier, right, sentence(output))


class S3:
  """A server behind a proxy."""

  def __init__(self, url):
    """For the processes, and for this one without the proxy."""
    self.proxy = bucket_servers.FaultyProxy(url)
    self.env = bucket_servers.KEYS | dict(AWS_ENDPOINT_URL=self.proxy.url)
    os.environ.update(bucket_servers.KEYS, AWS_ENDPOINT_URL=url)
    import s3fs

    self.fs = s3fs.S3FileSystem(use_listings_cache=False)

  def fails(self, fault, name, phase):
    """From here on."""
    proxy, self.proxy.share = self.proxy, 0.0
    if fault:
      proxy.only = REQUESTS[phase].replace("*", name)
      proxy.fault, share, proxy.seconds = NETWORK[fault]
      proxy.first_failed, proxy.failed, proxy.share = None, 0, share

  def get(self, path, folder):
    """A copy of the bucket's folder."""
    shutil.rmtree(folder, ignore_errors=True)
    self.fs.get(f"bucket/{path}", str(folder), recursive=True)
    return folder


def network_row(bench, s3, phase, fault):
  """A row of an object store."""
  name = f"row{next(bench.numbers)}"
  url, caches = f"s3://bucket/runs/{name}", [bench.folder / f"{name}-{i}" for i in (1, 2)]
  data = None
  if phase == "loading data":
    data = dict(name="jsonl", fname="s3://bucket/set/train.jsonl")
  if phase == "restoring":
    s3.fs.put(str(bench.stopped), f"bucket/runs/{name}", recursive=True)
  command = bench.train(url, data)
  if phase == "scoring":
    s3.fs.put(str(bench.straight), f"bucket/runs/{name}", recursive=True)
    command = bench.score(url, f"s3://bucket/scores/{name}")
  s3.fails(fault, name, phase)
  status, output = bench.run(command, **s3.env, PGJAX_CACHE_DIR=str(caches[0]))
  began = s3.proxy.first_failed
  assert s3.proxy.failed, "no request has met the fault"
  s3.fails("", name, phase)
  again = lambda: bench.run(command, **s3.env, PGJAX_CACHE_DIR=str(caches[1]))  # noqa: E731
  copied = bench.folder / f"{name}-copy"
  place = dict(scores=lambda: s3.get(f"scores/{name}", copied)) if phase == "scoring" else {}
  row = compared(
    bench,
    ("S3", phase, fault),
    status,
    output,
    began,
    again,
    lambda: s3.get(f"runs/{name}", copied),
    **place,
  )
  for folder in (*caches, copied):
    shutil.rmtree(folder, ignore_errors=True)
  return row


@contextlib.contextmanager
def small_disk(folder, megabytes=64):
  """A tmpfs."""
  folder.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, free):
  """All of it but `free` bytes."""
  size = max(shutil.disk_usage(disk).free - free, 0)
  with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
    while size > 0:
      size -= file.write(bytes(min(size, 4096 if size < 1 << 20 else 1 << 20)))


def step_bytes(bench):
  """Bytes of the arrays of a checkpoint."""
  run = json.loads((bench.straight / "checkpoints/24/run.json").read_text())
  total = 0
  for dtype, shape in run["shapes"].values():
    count = 1
    for size in shape:
      count *= size
    total += count * {"bfloat16": 2, "int8": 1, "uint32": 4, "int32": 4}.get(dtype, 4)
  return total


def disk_row(bench, s3, store, phase):
  """A row of a disk that is full, for a local workdir or the local copy of a bucket's."""
  name = f"row{next(bench.numbers)}"
  pause, free = FULL[phase]
  with small_disk(bench.folder / name) as disk:
    workdir, env, data = disk / "w", {}, None
    if store == "S3":
      env = s3.env | dict(PGJAX_CACHE_DIR=str(disk / "cache"))
      (disk / "cache").mkdir()
      workdir = f"s3://bucket/runs/{name}"
    ckpt, out = bench.straight, disk / "scores"
    if phase == "restoring" and store == "S3":
      s3.fs.put(str(bench.stopped), f"bucket/runs/{name}", recursive=True)
    elif phase == "restoring":
      shutil.copytree(bench.stopped, workdir)
    if phase == "loading data":
      data = dict(name="jsonl", fname="s3://bucket/set/train.jsonl")
    command = bench.train(workdir, data)
    if phase == "scoring":
      if store == "S3":
        out = f"s3://bucket/scores/{name}"
      command = bench.score(ckpt, out)
    env["PAUSE_FILE"] = str(bench.folder / f"{name}-pause")
    env |= dict(PAUSE=pause)
    free = int(0.93 * step_bytes(bench)) if free is None else free
    if not pause:
      fill(disk, 40_000)
    filled = [time.monotonic()]

    def full():
      fill(disk, free)
      filled.append(time.monotonic())

    status, output = bench.run(command, full=full, **env)
    with contextlib.suppress(FileNotFoundError):
      (disk / "filler").unlink()
    kept = {n: v for n, v in env.items() if n not in ("PAUSE", "PAUSE_FILE")}
    copied = bench.folder / f"{name}-copy"
    of = lambda kind, path: s3.get(f"{kind}/{name}", copied) if store == "S3" else path  # noqa: E731
    place = dict(scores=lambda: of("scores", out)) if phase == "scoring" else {}
    row = compared(
      bench,
      (store, phase, "disk full"),
      status,
      output,
      filled[-1],
      lambda: bench.run(command, **kept),
      lambda: of("runs", workdir),
      **place,
    )
    shutil.rmtree(copied, ignore_errors=True)
    return row


def cases():
  """(store, phase, fault, the function that makes the row) of all rows."""
  for phase in FULL:
    if phase != "loading data":
      yield "local", phase, "disk full", lambda b, s, p=phase: disk_row(b, s, "local", p)
    yield "S3", phase, "disk full", lambda b, s, p=phase: disk_row(b, s, "S3", p)
  for phase in REQUESTS:
    for fault in NETWORK:
      yield "S3", phase, fault, lambda b, s, p=phase, f=fault: network_row(b, s, p, f)


def chosen(patterns):
  """The rows that match one of the patterns, in the order of these."""
  listed = {" ".join(case[:3]): case for case in cases()}
  names = [name for pattern in patterns for name in listed if re.search(pattern, name)]
  return [listed[name] for name in dict.fromkeys(names)]


def main():
  """Prints the table; the exit status is 1 if a row is not right."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", nargs="+", default=[""], help="regular expressions: which rows")
  parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
  args = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="pgjax-storage-"))
  print(f"What the commands print is in {folder}/log.txt", flush=True)
  with bucket_servers.s3() as url:
    bench = Bench(folder)
    workers = queue.SimpleQueue()
    for number in range(args.jobs):
      workers.put((bench.beside(number), S3(url)))
    s3 = S3(url)
    s3.fs.mkdir("bucket")
    s3.fs.put(str(folder / "set"), "bucket/set", recursive=True)
    print("| store | phase | fault | status | lasted | resumed from | equal | sentence |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)

    def one(case):
      worker = workers.get()
      try:
        row = case[-1](*worker)
      except Exception as error:  # The others go on.
        row = Row(*case[:3], None, 0, "-", False, f"{type(error).__name__}: {error}")
      workers.put(worker)
      bench.log(f"{row.line()}\n\n")
      print(row.line(), flush=True)
      return row

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
      rows = list(pool.map(one, chosen(args.rows)))
  print(f"{sum(row.equal for row in rows)} of {len(rows)} rows are right.")
  return int(not all(row.equal for row in rows))


if __name__ == "__main__":
  sys.exit(main())
