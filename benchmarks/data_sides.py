"""How fast do two checkouts prepare images? In turns, so that both see the same load.

python benchmarks/data_sides.py --before=FOLDER --after=. --images=../shared/data [--rounds=5]

Each checkout is one process on --threads threads (default 2), which load all rows in a round. The
table has images a second (median, range), CPU milliseconds an image, and the median ratio of the
CPU times of a round, which other programs on the machine disturb least.
"""

import argparse
import concurrent.futures
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

CASES = {
  f"{side} px{', antialias' * antialias}": (
    side,
    f"decode|resize({side}, antialias={antialias})|value_range(-1, 1)",
  )
  for side in (224, 448, 896)
  for antialias in (False, True)
}


def serve(file, threads):
  """Reads names of CASES from stdin, and prints the seconds and CPU seconds of all images."""
  sys.path.insert(0, ".")
  from pgjax.data import loader, pipeline, tokenizer

  [part] = pipeline.parts(dict(name="jsonl", fname=file, root="/"))
  tiny = tokenizer.load("tiny")
  loaders = {
    name: loader.Loader(part, pp, tiny, loader.Layout(res, 16, 0, for_training=True), 0)
    for name, (res, pp) in CASES.items()
  }
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  rows = range(len(part.source))
  list(pool.map(lambda i: part.source[i], rows))  # The files are in memory.
  print("ready", flush=True)
  for line in sys.stdin:
    load = loaders[line.strip()]
    start, cpu = time.perf_counter(), time.process_time()
    for _ in pool.map(functools.partial(load, 0), rows):
      pass
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]), flush=True)


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser()
  for name, default in dict(before=None, after=".", images="../shared/data").items():
    parser.add_argument(f"--{name}", default=default)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--serve")
  args = parser.parse_args()
  if args.serve:
    return serve(args.serve, args.threads)
  folder = pathlib.Path(args.images).resolve()
  paths = [*sorted(folder.rglob("*.jpg"))[::16][:25], *sorted(folder.rglob("*.png"))[::25][:15]]
  with tempfile.TemporaryDirectory() as scratch:
    file = pathlib.Path(scratch, "train.jsonl")
    rows = [dict(image=str(path), prefix="what", suffix="it") for path in paths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = str(pathlib.Path(__file__).resolve())
    command = [sys.executable, program, f"--serve={file}", f"--threads={args.threads}"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    sides = {
      s: subprocess.Popen(command, cwd=getattr(args, s), **pipes) for s in ("before", "after")
    }
    for side in sides.values():
      assert side.stdout.readline() == "ready\n"
    times = {(case, side): [] for case in CASES for side in sides}
    for number in range(args.rounds):
      for case in CASES:
        for name in sorted(sides, reverse=bool(number % 2)):
          sides[name].stdin.write(f"{case}\n")
          sides[name].stdin.flush()
          times[case, name].append(json.loads(sides[name].stdout.readline()))
    for side in sides.values():
      side.stdin.close()
      side.wait()
  images = len(paths)
  print("| ops | side | images/s (range) | CPU ms/image | CPU, after / before |")
  print("| --- | --- | --- | --- | --- |")
  for case in CASES:
    ratios = [a[1] / b[1] for a, b in zip(times[case, "after"], times[case, "before"], strict=True)]
    for name in sides:
      seconds = [t[0] for t in times[case, name]]
      cpu = statistics.median(t[1] for t in times[case, name]) / images * 1000
      rate = images / statistics.median(seconds)
      spread = f"{images / max(seconds):.1f} to {images / min(seconds):.1f}"
      last = f"{statistics.median(ratios):.2f}" if name == "after" else ""
      print(f"| {case} | {name} | {rate:.1f} ({spread}) | {cpu:.1f} | {last} |")
  return None


if __name__ == "__main__":
  main()
