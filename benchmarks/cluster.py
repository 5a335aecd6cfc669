"""Which mesh is the fastest for large runs on H100s, by pgjax.plan's model?

  python -m benchmarks.cluster [--only=REGEX] [--compile=N]

For four runs: the mesh of config.mesh="auto" beside up to twelve others, by the estimate that
"auto" uses, and the N fastest of them that fit compiled for the H100 (requirements-plan.txt).
"""

import argparse
import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

HAND_MADE = 12
# name: (config, GPUs, GPUs of a host)
RUNS = {
  "28b_full_224": ("configs/forkme.py:size=28b,res=224,batch_size=128", 64, 8),
  "28b_lora_896": ("configs/forkme.py:size=28b,res=896,batch_size=4,tune=lora", 8, 8),
  "10b_full_896": ("configs/forkme.py:size=10b,res=896,batch_size=16", 16, 8),
  "3b_full_448": ("configs/forkme.py:size=3b,res=448,batch_size=256", 8, 8),
}


def sweep(auto: Any, candidates: list[Any]) -> list[Any]:
  """Twelve meshes that are not auto's: simple ones first, as by hand, then the rest."""

  def axes(candidate):
    return {axis: n for axis, n in candidate.mesh.items() if n > 1}

  others = [c for c in candidates if axes(c) != dict(auto.mesh)]
  return sorted(others, key=lambda c: (len(axes(c)), -c.mesh["data"]))[:HAND_MADE]


def rows(spec: str, num_devices: int, host: int, count: int) -> Iterator[str]:
  """One line for each mesh: bytes and seconds by estimate, and of the compiled schedule."""
  from pgjax.config import load as config_load, validate as config_validate
  from pgjax.planning import compiler as compiler_lib, gpus, interconnects, mesh_choice, step_time

  config = config_validate.validated(config_load.load(spec, {"mesh": "auto"}))
  gpu, links = gpus.GPUS["H100"], interconnects.links("H100", host)
  cluster = mesh_choice.Cluster(num_devices, host, gpu, gpu.memory_bytes, links.between)
  choice = mesh_choice.choose(config, cluster)
  yield choice.why
  wanted = {axis: n for axis, n in choice.mesh if n > 1}
  chosen = next(
    c for c in choice.candidates if {a: n for a, n in c.mesh.items() if n > 1} == wanted
  )
  others = sweep(choice._replace(mesh=list(wanted.items())), choice.candidates)
  fitting = [c for c in others if c.bytes <= gpu.memory_bytes]
  compiled = {id(c) for c in sorted(fitting, key=lambda c: c.seconds)[: count - 1]} | {id(chosen)}
  with contextlib.ExitStack() as stack:
    for candidate in [chosen, *others]:
      text = f"{'auto' if candidate is chosen else '':<6}{candidate.mesh!s:<60}"
      text += f"{candidate.bytes / 1e9:>8.1f} GB{candidate.seconds:>8.3f} s"
      if count and id(candidate) in compiled:
        compiler = compiler_lib.Compiler("H100", num_devices)
        stack.callback(compiler.close)
        fields = dict(
          mesh=[(a, n) for a, n in candidate.mesh.items() if n > 1] or [("data", 1)],
          sharding_strategy=mesh_choice.strategy(config, candidate.mesh),
        )
        changed = config_validate.validated(config_load.overridden(config, fields))
        step = compiler.step(changed, num_devices, hosts=num_devices // host)
        run = step_time.played(step, links)
        text += f"   compiled {step.need.total / 1e9:.1f} GB {run.seconds:.3f} s"
      yield text


def main() -> None:
  """Prints a table for each run."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default=".*", help=f"of {', '.join(RUNS)}")
  parser.add_argument("--compile", type=int, default=0, help="meshes of each run to compile")
  args = parser.parse_args()
  for name, run in RUNS.items():
    if re.fullmatch(args.only, name):
      print(f"\n{name}: {run[0]} on {run[1]} x H100", flush=True)
      for line in rows(*run, args.compile):
        print(line, flush=True)


if __name__ == "__main__":
  main()
