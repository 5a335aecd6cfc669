"""How fast is pgjax on this GPU, in how much memory, and beside transformers?

  python -m benchmarks.gpu [--only=REGEX] [--minutes=8] [--full] [--out=FILE] [--profile=FOLDER]

One command for a machine with an NVIDIA GPU: what the GPU itself reaches; steps of PaliGemma 2 3B,
their time, MFU and peak memory beside the planner's; decoding, its time a token beside the time
that reading the weights takes; attention by each implementation that is installed, with its error
against plain attention in float32; our other kernels; the input pipeline; then, in turns, the
same steps and decoding by pgjax and by transformers with PEFT where they are installed, for which
a third of the minutes is left. Weights, images and texts are random. Rows are printed as they
end and written to benchmarks/results/DATE-GPU.md; what does not fit or has no time left is a row
that says so. --tiny runs everything with small sizes and few calls, also on a CPU, in minutes.
"""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import gpu_attention, gpu_cases, gpu_input, gpu_kernels, gpu_turns
from benchmarks.gpu_cases import NEW_TOKENS, NO_TIME, Case
from benchmarks.side import ROOT, first_line

GB, TERA = 1e9, 1e12
# Names for --only.
ATTENTION, KERNELS, INPUT = "attention", "kernels", "input"
TURNS_SHARE = 1 / 3  # Of the time.
ROUNDS, STEPS = 3, 4  # The median of rounds of this many calls each.


class Report(NamedTuple):
  """Markdown, printed and appended line by line, so that an interrupted run leaves its rows."""

  path: pathlib.Path

  def line(self, text: str = "") -> None:
    """One line."""
    print(text, flush=True)
    with self.path.open("a") as file:
      print(text, file=file)

  def table(self, title: str, columns: tuple[str, ...]) -> None:
    """The head of a table, whose rows follow."""
    self.line(f"\n## {title}\n")
    self.row(columns)
    self.row(["---"] * len(columns))

  def row(self, cells: Iterable[Any]) -> None:
    """One row of a table."""
    self.line(f"| {' | '.join(str(cell) for cell in cells)} |")


class Reached(NamedTuple):
  """What the device reaches: matrix products in bfloat16, and copies within its memory."""

  flops: float  # FLOP/s.
  bandwidth: float  # Bytes a second, read and written.


class Run(NamedTuple):
  """One run of this program."""

  args: Any
  end: float  # Of time.monotonic(): no case starts later.
  report: Report
  reached: Reached

  def check_time(self) -> None:
    """Raises once the time is over."""
    if time.monotonic() > self.end:
      raise TimeoutError(NO_TIME)

  def seconds_of(self, call: Callable[[], Any], steps: int = STEPS) -> float:
    """Of one `call()`."""
    return seconds_of(call, self.args.tiny, steps)


def seconds_of(call: Callable[[], Any], tiny: bool, steps: int = STEPS) -> float:
  """Of one `call()`, whose arrays are ready when its work is done; the first is not counted."""
  import jax

  rounds, steps = (1, 1) if tiny else (ROUNDS, steps)
  jax.block_until_ready(call())
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(steps):
      result = call()
    jax.block_until_ready(result)
    times.append((time.perf_counter() - start) / steps)
  return sorted(times)[rounds // 2]


def reached(tiny: bool) -> Reached:
  """Measured on random values: zeros are faster."""
  import jax
  import jax.numpy as jnp

  side, length = (256, 2**20) if tiny else (8192, 2**29)
  a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
  x = jax.random.normal(jax.random.key(1), (length,), jnp.bfloat16)
  product, negated = jax.jit(jnp.dot), jax.jit(jnp.negative)
  return Reached(
    2 * side**3 / seconds_of(lambda: product(a, a), tiny, steps=10),
    2 * x.nbytes / seconds_of(lambda: negated(x), tiny, steps=10),
  )


def compiled(run: Run, lowered: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[Any, float]]:
  """{name: (program, or its error; seconds)}, several at a time; nothing is measured meanwhile.

  Cases that a device without kernels, or --tiny, makes equal share one program.
  """

  def compile_one(program):
    start = time.perf_counter()
    try:
      program = program.compile()
    except Exception as error:  # One that does not compile must not end the others.
      program = error
    return program, time.perf_counter() - start

  start, by_name, by_text = time.perf_counter(), {}, {}
  with concurrent.futures.ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
    for name, lower in lowered.items():
      program = lower()
      text = program.as_text()
      if text not in by_text:
        by_text[text] = pool.submit(compile_one, program)
      by_name[name] = by_text[text]
    programs = {name: future.result() for name, future in by_name.items()}
  seconds = time.perf_counter() - start
  run.report.line(f"\n{len(by_text)} programs compiled in {seconds:.0f} s.")
  return programs


def steps_table(run: Run, cases: list[Case]) -> None:
  """Training steps, those that need least first, because the allocator's peak never falls."""
  import jax

  of = {case.name: gpu_cases.Step(case, run.args.tiny) for case in cases}
  programs = compiled(run, {name: step.lower for name, step in of.items()})
  columns = (
    "step", "batch", "remat", "ms", "examples/s", "MFU %", "of reached %",
    "planned GB", "peak GB", "loss", "compiling s",
  )  # fmt: skip
  run.report.table("Training steps of PaliGemma 2 3B", columns)
  need = {n: of[n].need(p) if not isinstance(p, Exception) else 0 for n, (p, _) in programs.items()}
  before = 0
  for name in sorted(programs, key=need.get):
    (program, compiling), step = programs[name], of[name]
    head = [name, step.case.batch, step.remat]
    try:
      run.check_time()
      update = step.ready(program)
      seconds = run.seconds_of(update)
      profile(run, name, update)
      peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
      rate = step.flops / seconds
      shares = [f"{100 * rate / r:.1f}" if r else "" for r in (step.peak_flops, run.reached.flops)]
      times = [f"{1e3 * seconds:.1f}", f"{step.case.batch / seconds:.1f}"]
      sizes = [f"{need[name] / GB:.2f}", f"{'' if peak > before else '<= '}{peak / GB:.2f}"]
      run.report.row([*head, *times, *shares, *sizes, f"{update():.3f}", f"{compiling:.0f}"])
      before = max(before, peak)
    except Exception as error:  # A case that fails is a row.
      run.report.row([*head, first_line(error), *[""] * (len(columns) - 4)])
    step.free()


def decode_table(run: Run, cases: list[Case]) -> None:
  """Decoding: the time before the first token, and that of each further one."""
  of = {(c.name, n): gpu_cases.Decode(c, n, run.args.tiny) for c in cases for n in (1, NEW_TOKENS)}
  programs = compiled(run, {name: decode.lower for name, decode in of.items()})
  columns = (
    "decode", "batch", "first token ms", "ms a token", "tokens/s", "weights GB", "of bandwidth %",
    "compiling s",
  )  # fmt: skip
  run.report.table(f"Decoding {NEW_TOKENS} tokens, PaliGemma 2 3B at 224 px", columns)
  for case in cases:
    head, seconds, compiling = [case.name, of[case.name, 1].case.batch], {}, 0.0
    try:
      for length in (1, NEW_TOKENS):
        run.check_time()
        decode, (program, took) = of[case.name, length], programs[case.name, length]
        answer = decode.ready(program)
        seconds[length] = run.seconds_of(answer, steps=1)
        compiling += took
        if length > 1:
          profile(run, case.name, answer)
        decode.free()
      token = (seconds[NEW_TOKENS] - seconds[1]) / (NEW_TOKENS - 1)
      rate = decode.case.batch * NEW_TOKENS / seconds[NEW_TOKENS]
      share = decode.weight_bytes / token / run.reached.bandwidth
      times = [f"{1e3 * seconds[1]:.1f}", f"{1e3 * token:.2f}", f"{rate:,.0f}"]
      sizes = [f"{decode.weight_bytes / GB:.2f}", f"{100 * share:.0f}"]
      run.report.row([*head, *times, *sizes, f"{compiling:.0f}"])
    except Exception as error:  # A case that fails is a row.
      run.report.row([*head, first_line(error), *[""] * (len(columns) - 3)])


def attention_table(run: Run) -> None:
  """One layer's attention by each implementation."""
  columns = ("shape", "implementation", "forward ms", "and backward ms", "error", "of gradients")
  run.report.table("Attention of one layer, bfloat16; errors against plain in float32", columns)
  for shape in gpu_attention.shapes(run.args.tiny):
    right = gpu_attention.reference(shape)
    for name, attend in gpu_attention.implementations(shape).items():
      try:
        run.check_time()
        forward, both, errors = gpu_attention.calls(shape, attend, right)
        times = [f"{1e3 * run.seconds_of(call):.2f}" for call in (forward, both)]
        run.report.row([shape.name, name, *times, *(f"{e:.1e}" for e in errors)])
      except Exception as error:  # A kernel that refuses a shape or a GPU is a row.
        run.report.row([shape.name, name, first_line(error), "", "", ""])


def kernels_table(run: Run) -> None:
  """Our other kernels beside plain JAX."""
  columns = ("work", "kernel ms", "plain ms", "error")
  run.report.table("Other kernels; errors against plain JAX", columns)
  for name, make in gpu_kernels.cases(run.args.tiny).items():
    try:
      run.check_time()
      work = make()
      times = [f"{1e3 * run.seconds_of(call, steps=10):.3f}" for call in work[:2]]
      run.report.row([name, *times, f"{float(work.error()):.1e}"])
    except Exception as error:  # A kernel that does not compile for this GPU is a row.
      run.report.row([name, first_line(error), "", ""])


def input_table(run: Run) -> None:
  """The input pipeline alone."""
  columns = ("px", "examples/s", "a core")
  run.report.table(f"Input pipeline alone, {os.cpu_count()} cores, JPEG of 640 x 480", columns)
  for res in (28, 56) if run.args.tiny else (224, 448, 896):
    try:
      run.check_time()
      rate = gpu_input.examples_per_second(res, batches=2 if run.args.tiny else 64)
      run.report.row([res, f"{rate:.1f}", f"{rate / (os.cpu_count() or 1):.1f}"])
    except Exception as error:  # A case that fails is a row.
      run.report.row([res, first_line(error), ""])


def profile(run: Run, name: str, call: Callable[[], Any], times: int = 2) -> None:
  """With --profile: a table of the kernels of one `call()`, milliseconds, calls and names."""
  if run.args.profile is None:
    return
  import jax

  folder = run.args.profile / name
  with jax.profiler.trace(str(folder)):
    for _ in range(times):
      result = call()
    jax.block_until_ready(result)
  totals: dict[str, tuple[float, float]] = {}
  for path in folder.rglob("*.xplane.pb"):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines if plane.name.startswith("/device:GPU") else ():
        for event in line.events if line.name.startswith("Stream") else ():
          ms, calls = totals.get(event.name, (0.0, 0.0))
          totals[event.name] = ms + event.duration_ns / 1e6 / times, calls + 1 / times
  shutil.rmtree(folder)
  rows = sorted(totals.items(), key=lambda item: -item[1][0])
  text = [f"{sum(ms for ms, _ in totals.values()):9.3f} ms of kernels"]
  text += [f"{ms:9.3f} {calls:7.1f}  {kernel}" for kernel, (ms, calls) in rows[:100]]
  (run.args.profile / f"{name}.txt").write_text("\n".join(text) + "\n")


def device_name() -> str:
  """Of the first GPU; "cpu" without one."""
  try:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=True).stdout
  except (OSError, subprocess.CalledProcessError):
    return "cpu"
  return names.splitlines()[0].strip()


def of_pgjax(args: Any, end: float, report: Report) -> None:
  """Everything but transformers."""
  run = Run(args, end, report, reached(args.tiny))
  report.line(
    f"Reached here: {run.reached.flops / TERA:.1f} TFLOP/s in a bfloat16 matrix product,"
    f" {run.reached.bandwidth / TERA:.2f} TB/s in a copy. MFU is of the data sheet's rate."
  )
  if cases := chosen(gpu_cases.STEPS, args):
    steps_table(run, cases)
  if cases := chosen(gpu_cases.DECODES, args):
    decode_table(run, cases)
  for name, table in (ATTENTION, attention_table), (KERNELS, kernels_table), (INPUT, input_table):
    if re.fullmatch(args.only, name):
      table(run)


def chosen(cases: list[Case], args: Any) -> list[Case]:
  """Those that --only and --full name."""
  return [c for c in cases if (args.full or not c.rare) and re.fullmatch(args.only, c.name)]


def quick_compilation() -> None:
  """Has XLA compile for a CPU without optimizations, for --tiny: nine times as fast.

  XLA aborts on a flag that it has not, so by tried version, as in tests/conftest.py.
  """
  version, flags = importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", "")
  if version.startswith(("0.10.", "0.12.")):
    flags += " --xla_backend_optimization_level=0"
  if version.startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
  os.environ["XLA_FLAGS"] = flags.strip()


def arguments() -> Any:
  """Of the command line, checked."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default=".*", help='cases such as "full.*|attention|transformers"')
  parser.add_argument("--minutes", type=float, default=8.0, help="no case starts later")
  parser.add_argument("--full", action="store_true", help="also the cases that most people skip")
  parser.add_argument("--out", type=pathlib.Path, help="default: benchmarks/results/DATE-GPU.md")
  parser.add_argument("--profile", type=pathlib.Path, help="a folder for tables of kernels")
  parser.add_argument("--tiny", action="store_true", help="small sizes: a test of this program")
  parser.add_argument("--torch_python", default=sys.executable, help="transformers' interpreter")
  args = parser.parse_args()
  try:
    re.compile(args.only)
  except re.error as error:
    sys.exit(f"error: --only={args.only} is not a regular expression: {error}.")
  known = [case.name for case in [*gpu_cases.STEPS, *gpu_cases.DECODES]]
  known += [ATTENTION, KERNELS, INPUT, *(f"transformers_{case.name}" for case in gpu_turns.CASES)]
  if not any(re.fullmatch(args.only, name) for name in [*known, gpu_turns.TRANSFORMERS]):
    sys.exit(f"error: --only={args.only} matches none of {', '.join(known)}.")
  return args


def new_report(args: Any, device: str) -> Report:
  """With its title, in --out or benchmarks/results."""
  today = datetime.datetime.now().astimezone().date()
  short = re.sub(r"\W+", "-", device.removeprefix("NVIDIA "))
  report = Report(args.out or ROOT / "benchmarks/results" / f"{today}-{short}.md")
  report.path.parent.mkdir(parents=True, exist_ok=True)
  report.path.write_text("")
  command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
  report.line(f"# pgjax on {device}\n\n{today:%d %B %Y}, `{command}`.\n")
  return report


def main() -> None:
  """Prints and writes the tables."""
  args, name = arguments(), device_name()
  if name == "cpu" and not args.tiny:
    sys.exit("error: nvidia-smi finds no GPU here. --tiny tests this program itself on a CPU.")
  cpu = name == "cpu"
  if cpu:
    quick_compilation()
  start, compared = time.monotonic(), gpu_turns.chosen(args.only)
  share = 1 - TURNS_SHARE if compared and not gpu_turns.missing(args.torch_python) else 1.0
  report = new_report(args, name)
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
  with tempfile.TemporaryDirectory() as folder:  # For the turns, which compile nothing again.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    # In a process of its own: only its end returns the GPU's memory.
    work = (args, start + 60 * args.minutes * share, report)
    process = multiprocessing.get_context("spawn").Process(target=of_pgjax, args=work)
    process.start()
    process.join()
    if process.exitcode:
      sys.exit(process.exitcode)
    if compared:
      pythons, end = (sys.executable, args.torch_python), start + 60 * args.minutes
      with gpu_turns.Turns(pythons, "cpu" if cpu else "gpu", args.tiny) as turns:
        gpu_turns.table(report, compared, turns, end)


if __name__ == "__main__":
  main()
