"""Says what a run needs before anyone rents a GPU: memory, FLOPs, communication, step time.

Nothing is allocated. The training step is compiled for the GPU that --device names, which need not
be here (pip install --no-deps -r requirements-plan.txt), or else for this CPU with simulated
devices; the page says which. No data, tokenizer or weights are read. Bytes are of one device.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

from etils import epy

from pgjax import cli, disk
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import jax

  from pgjax.distributed import mesh as mesh_lib
  from pgjax.planning import (
    autotune,
    compiler as compiler_lib,
    figure as plan_figure,
    gpus,
    page as plan_page,
    table as plan_table,
  )

DEFAULT = "H100"
METHODS = "full,no_vit,attention,lora,qlora"


def main(args: Any) -> None:
  """Prints one run's page, the table of many, or the search for the fastest."""
  # This process touches no device; of the plugins it only says nothing about a missing driver.
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  jax.config.update("jax_platforms", "cpu")
  name, gpu, limit_bytes = device(args)
  check(args)
  target = name if compiler_lib.can_compile_for_gpus() else None
  about = About(name, gpu, limit_bytes, target)
  data = (table if args.table else search if args.suggest else one)(args, about)
  if args.json:
    disk.write(pathlib.Path(args.json), json.dumps(data, indent=2) + "\n")


class About(NamedTuple):
  """The device."""

  name: str
  gpu: gpus.Gpu
  limit_bytes: float
  target: str | None  # What is compiled for; None: the CPU.


def one(args: Any, about: About) -> dict[str, Any]:
  """The page of the run."""
  with compiler_lib.Compiler(about.target, args.devices) as compiler:
    step = compiler.step(args.config, args.devices)
  of = (args.config, args.config_spec, step, about.name, about.gpu, about.limit_bytes, args.mfu)
  say(plan_page.page(*of))
  if args.picture:
    plan_figure.bar(
      args.picture, step.need, about.limit_bytes, f"{args.config_spec} on {about.name}"
    )
  return plan_page.as_json(*of)


def table(args: Any, about: About) -> dict[str, Any]:
  """Sizes x resolutions x methods x batch sizes."""
  batches = [whole(text, "--batches") for text in args.batches]
  make_config = functools.partial(plan_table.config_of, args.config_spec, args.overrides)
  cases = plan_table.cases(args.sizes, args.resolutions, args.methods)
  for case in cases:  # A name that the config does not know is told before anything is compiled.
    make_config(case, args.devices)
  say(plan_table.head(about.name, about.limit_bytes, batches, args.devices))
  rows = []
  for row in plan_table.rows(
    cases,
    make_config,
    lambda: compiler_lib.Compiler(about.target, args.devices),
    batches=batches,
    num_devices=args.devices,
    limit_bytes=about.limit_bytes,
    processes=args.processes,
  ):
    say(plan_table.line(row, about.limit_bytes))
    rows.append(row)
  if about.target is None:
    say(plan_page.FOR_CPU)
  if args.picture:
    plan_figure.grid(args.picture, rows, about.name, about.limit_bytes)
  found = [plan_table.as_json(row, about.limit_bytes) for row in rows]
  return dict(device=about.name, compiled_for=about.target or "cpu", rows=found)


def search(args: Any, about: About) -> dict[str, Any]:
  """The fastest setting that fits."""
  candidates = []
  with compiler_lib.Compiler(about.target, args.devices) as compiler:
    for candidate in autotune.candidates(
      args.config,
      lambda config: compiler.step(config, args.devices),
      gpu=about.gpu,
      limit_bytes=about.limit_bytes,
      mfu=args.mfu,
      num_devices=args.devices,
    ):
      candidates.append(candidate)
      say(autotune.line(candidate))
  say(autotune.verdict(candidates))
  if about.target is None:
    say(plan_page.FOR_CPU)
  if args.picture and (chosen := autotune.best(candidates)):
    plan_figure.bar(
      args.picture,
      chosen.step.need,
      about.limit_bytes,
      f"{args.config_spec} with what is suggested, on {about.name}",
    )
  return dict(device=about.name, candidates=[autotune.as_json(c) for c in candidates])


def device(args: Any) -> tuple[str, gpus.Gpu, float]:
  """(name, what is known of it, bytes that a run may take)."""
  if args.device and args.hbm_gb:
    raise UserError(
      f"--device={args.device} and --hbm_gb={args.hbm_gb:g} both say how much memory there is; "
      "give one of them."
    )
  if args.hbm_gb is not None and args.hbm_gb <= 0:
    raise UserError(f"--hbm_gb={args.hbm_gb:g} must be a number of gigabytes > 0.")
  name = gpus.named(args.device or DEFAULT)
  gpu = gpus.GPUS[name]
  return name, gpu, args.hbm_gb * 1e9 if args.hbm_gb else gpu.memory_bytes


def check(args: Any) -> None:
  """What can be wrong on the command line, before anything is compiled."""
  if args.devices < 1:
    raise UserError(f"--devices={args.devices} must be a whole number >= 1.")
  if not 0 < args.mfu <= 1:
    raise UserError(f"--mfu={args.mfu:g} must be above 0 and at most 1; 0.4 is a good run's.")
  if args.table and args.suggest:
    raise UserError("--table and --suggest are two questions; ask one at a time.")
  if not args.table:
    mesh = jax.sharding.AbstractMesh((args.devices,), ("data",))
    mesh_lib.check_batch_size(args.config.input.batch_size, mesh)
  if args.processes < 1:
    raise UserError(f"--processes={args.processes} must be a whole number >= 1.")
  if args.picture:
    plan_figure.check(args.picture)


def whole(text: str, flag: str) -> int:
  """A number of a list on the command line."""
  if not text.isdigit() or int(text) < 1:
    raise UserError(f"{flag}: {text!r} must be a whole number >= 1.")
  return int(text)


def say(text: str) -> None:
  """To whoever typed the command."""
  print(text, flush=True)  # noqa: T201


FLAGS = [
  cli.Flag("device", str, help=f"{', '.join(gpus.GPUS)} ({DEFAULT} if neither this nor --hbm_gb)"),
  cli.Flag("devices", int, 1, help="how many of them, in one host"),
  cli.Flag("hbm_gb", float, help=f"memory of each in GB (1e9 bytes), compiled for {DEFAULT}"),
  cli.Flag("mfu", float, 0.4, help="share of the peak that the products are assumed to reach"),
  cli.Flag("table", bool, False, help="sizes x resolutions x methods x batch sizes, and what fits"),
  cli.Flag("sizes", list, "3b,10b,28b", help="of the table, as the config's argument size"),
  cli.Flag("resolutions", list, "224,448,896", help="of the table, as its argument res"),
  cli.Flag("methods", list, METHODS, help="of the table, as its argument tune"),
  cli.Flag("batches", list, "1,4,16,64", help="of the table, examples a device and step"),
  cli.Flag("processes", int, 2, help="of the table, compiling at a time; each takes up to 2 GB"),
  cli.Flag("suggest", bool, False, help="looks for the fastest setting of the run that fits"),
  cli.Flag("picture", str, help="a .png file for the bytes, or for what fits (needs matplotlib)"),
  cli.Flag("json", str, help="a file for the same as data"),
]
CONFIG = "required"
EXAMPLES = [
  "python -m pgjax.plan --config=configs/forkme.py:size=3b --device=H100",
  "python -m pgjax.plan --config=configs/forkme.py:size=10b,batch_size=64 --devices=8",
  "python -m pgjax.plan --config=configs/forkme.py --table --device=L4 --picture=fits.png",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
