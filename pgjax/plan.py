"""Reports what a run needs before you rent a GPU: memory, FLOPs, communication, step time.

Nothing is allocated; no data, tokenizer or weights are read. The training step is compiled for the
GPU of --device, without having one (pip install --no-deps -r requirements-plan.txt), or else for
this CPU with simulated devices; the report names which. Bytes are of one device.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import contextlib
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from pgjax import cli, disk
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import jax

  from pgjax.config import load as config_load, mesh_spec
  from pgjax.distributed import mesh as mesh_lib, mesh_notes
  from pgjax.formats import outputs
  from pgjax.models import paligemma
  from pgjax.planning import (
    autotune,
    compiler as compiler_lib,
    figure as plan_figure,
    gpus,
    interconnects,
    mesh_choice,
    page as plan_page,
    scaling,
    step_time,
    table as plan_table,
  )

DEFAULT = "H100"
METHODS = "full,no_vit,attention,lora,qlora"


def main(args: Any) -> None:
  """Prints the report on one run, the table of many, or the search for the fastest."""
  # This process uses no device; its plugins only warn about a missing driver.
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  jax.config.update("jax_platforms", "cpu")
  target = device(args)
  check(args, target)
  json_file, picture = outputs.file(args.json, "--json"), outputs.file(args.picture, "--picture")
  with json_file as as_json, picture as drawn:
    args.picture = drawn and str(drawn.path)
    write(args, target, as_json and as_json.path)


def write(args: Any, target: Target, as_json: pathlib.Path | None) -> None:
  """The report of `main`; args.picture and as_json: files of this machine."""
  # Where a file was asked for, too, nobody has to read stdout.
  show = cli.say if args.json or args.picture else cli.result
  data = (table if args.table else search if args.suggest else one)(args, target, show)
  if (args.table or args.suggest) and target.compiled_for is None:
    show(plan_page.FOR_CPU)
  if as_json:
    disk.write(as_json, json.dumps(data, indent=2) + "\n")


class Target(NamedTuple):
  """The device."""

  name: str
  gpu: gpus.Gpu
  limit_bytes: float
  compiled_for: str | None  # A name of planning/gpus.py; None: the CPU.


def one(args: Any, target: Target, show: Callable[[str], None]) -> dict[str, Any]:
  """The report on the run."""
  name, gpu, limit_bytes, compiled_for = target
  num_devices, links = args.devices * args.hosts, links_of(args, name)
  with contextlib.closing(compiler_lib.Compiler(compiled_for, num_devices)) as compiler:
    step = compiler.step(args.config, num_devices, hosts=args.hosts, limit_bytes=limit_bytes)
    plan = (args.config, args.config_spec, step, name, gpu, limit_bytes, args.mfu, links)
    show(plan_page.page(*plan))
    if args.scaling or args.hosts > 1:
      return plan_page.as_json(*plan) | sizes(args, target, show, step)
  if args.picture:
    plan_figure.bar(args.picture, step.need, limit_bytes, f"{args.config_spec} on {name}")
  return plan_page.as_json(*plan)


def sizes(args: Any, target: Target, show: Callable[[str], None], step: Any) -> dict[str, Any]:
  """The same run on 1 to 1,024 GPUs: for its batch, and for its batch a GPU."""
  links = links_of(args, target.name)
  cluster = mesh_choice.Cluster(
    step.num_devices, args.devices, target.gpu, target.limit_bytes, links.between
  )
  run = step_time.played(step, links)
  if run:
    compiled = scaling.Measure(step.need.total, run.kernels, run.seconds - run.kernels)
  else:
    mfu = args.mfu or step_time.MFU
    time = step_time.estimate(step, target.gpu, args.config.dtype, mfu)
    compiled = scaling.Measure(step.need.total, time.compute, time.communication)
  series = scaling.series(args.config, cluster, step.mesh, compiled)
  show(scaling.page(series, args.devices))
  if args.picture:
    plan_figure.scaling(args.picture, series, f"{args.config_spec} on {target.name}")
  return dict(scaling=[scaling.as_json(one) for one in series])


def links_of(args: Any, name: str) -> interconnects.Links:
  """The links of the flags."""
  return interconnects.links(name, args.devices, args.link_gbit)


def table(args: Any, target: Target, show: Callable[[str], None]) -> dict[str, Any]:
  """Sizes x resolutions x methods x batch sizes."""
  name, _, limit_bytes, compiled_for = target
  batches = [int(batch) for batch in args.batches]
  make_config = functools.partial(plan_table.config_of, args.config_spec, args.overrides)
  combinations = itertools.product(args.sizes, args.resolutions, args.methods)
  cases = [plan_table.Case(*values) for values in combinations]
  for case in cases:  # Reports a name that the config does not know before anything is compiled.
    make_config(case, args.devices)
  show(plan_table.head(name, limit_bytes, batches, args.devices))
  rows = []
  for row in plan_table.rows(
    cases,
    make_config,
    lambda: compiler_lib.Compiler(compiled_for, args.devices),
    batches=batches,
    num_devices=args.devices,
    limit_bytes=limit_bytes,
    processes=args.processes,
  ):
    show(plan_table.line(row, limit_bytes))
    rows.append(row)
  if args.picture:
    plan_figure.grid(args.picture, rows, name, limit_bytes)
  data = [plan_table.as_json(row, limit_bytes) for row in rows]
  return dict(device=name, compiled_for=compiled_for or "cpu", rows=data)


def search(args: Any, target: Target, show: Callable[[str], None]) -> dict[str, Any]:
  """The fastest setting that fits."""
  name, gpu, limit_bytes, compiled_for = target
  candidates, num_devices = [], args.devices * args.hosts
  with contextlib.closing(compiler_lib.Compiler(compiled_for, num_devices)) as compiler:
    for candidate in autotune.candidates(
      args.config,
      lambda config: compiler.step(config, num_devices, hosts=args.hosts),
      gpu=gpu,
      limit_bytes=limit_bytes,
      mfu=args.mfu,
      num_devices=num_devices,
      links=links_of(args, name),
    ):
      candidates.append(candidate)
      show(autotune.line(candidate))
  show(autotune.verdict(candidates))
  if args.picture and (chosen := autotune.best(candidates)):
    title = f"{args.config_spec} with the suggested flags, on {name}"
    plan_figure.bar(args.picture, chosen.step.need, limit_bytes, title)
  return dict(device=name, candidates=[autotune.as_json(c) for c in candidates])


def device(args: Any) -> Target:
  """The device of the flags."""
  if args.device and args.hbm_gb:
    raise UserError(
      f"--device={args.device} and --hbm_gb={args.hbm_gb:g} both set the memory; give one of them."
    )
  if args.hbm_gb is not None and args.hbm_gb <= 0:
    raise UserError(f"--hbm_gb={args.hbm_gb:g} must be a number of gigabytes > 0.")
  name = gpus.named(args.device or DEFAULT)
  gpu = gpus.GPUS[name]
  compiled_for = name if compiler_lib.can_compile_for_gpus() else None
  return Target(name, gpu, args.hbm_gb * 1e9 if args.hbm_gb else gpu.memory_bytes, compiled_for)


def check(args: Any, target: Target) -> None:
  """Checks the other flags before anything is compiled."""
  if args.mfu is not None and not 0 < args.mfu <= 1:
    raise UserError(f"--mfu={args.mfu:g} must be above 0 and at most 1; a good run has 0.4.")
  if args.table and args.suggest:
    raise UserError("--table and --suggest are two questions; ask one at a time.")
  if args.link_gbit is not None and not 1 <= args.link_gbit <= 10_000:
    raise UserError(
      f"--link_gbit={args.link_gbit:g} must be from 1 to 10000: Gb/s between hosts for each GPU."
    )
  if args.table and (args.scaling or args.hosts > 1):
    raise UserError("--table is for one host; leave out --hosts and --scaling.")
  if args.suggest and args.scaling:
    raise UserError("--suggest and --scaling are two questions; ask one at a time.")
  if not args.table:
    num_devices = args.devices * args.hosts
    how = (num_devices, target.gpu, target.limit_bytes, cli.say)
    network = links_of(args, target.name).between
    config = mesh_choice.on(args.config, *how, hosts=args.hosts, network=network)
    axes = mesh_spec.sizes(config.mesh, num_devices, args.devices)
    config = args.config = config_load.overridden(config, dict(mesh=list(axes.items()))).lock()
    mesh = mesh_lib.abstract_mesh(config.mesh, num_devices)
    size, microbatches = config.input.batch_size, config.microbatches
    mesh_lib.check_batch_size(size, mesh, microbatches=microbatches)
    for note in mesh_notes.notes(paligemma.Model(**config.model), config, mesh):
      cli.say(note)
  if wrong := [batch for batch in args.batches if not batch.isdigit() or int(batch) < 1]:
    raise UserError(f"--batches: {wrong[0]!r} must be a whole number >= 1.")
  if args.picture:
    plan_figure.check(args.picture)


FLAGS = [
  cli.Flag("device", str, help=f"{', '.join(gpus.GPUS)} ({DEFAULT} if neither this nor --hbm_gb)"),
  cli.Flag("devices", int, 1, least=1, help="how many of them in a host"),
  cli.Flag("hosts", int, 1, least=1, help="hosts; more than one implies --scaling"),
  cli.Flag("link_gbit", float, help="network between hosts, Gb/s for each GPU (H100: 400)"),
  cli.Flag("scaling", bool, False, help="the run on 1 to 1,024 such GPUs, modelled"),
  cli.Flag("hbm_gb", float, help=f"memory of each in GB (1e9 bytes), compiled for {DEFAULT}"),
  cli.Flag("mfu", float, help="model the time by this share of the peak, not by the schedule"),
  cli.Flag("table", bool, False, help="sizes x resolutions x methods x batch sizes, and what fits"),
  cli.Flag("sizes", list, "3b,10b,28b", help="sizes in the table (config argument size)"),
  cli.Flag(
    "resolutions", list, "224,448,896", help="resolutions in the table (config argument res)"
  ),
  cli.Flag("methods", list, METHODS, help="methods in the table (config argument tune)"),
  cli.Flag("batches", list, "1,4,16,64", help="batch sizes in the table, per device and step"),
  cli.Flag("processes", int, 2, least=1, help="compilers of the table; each takes up to 2 GB"),
  cli.Flag("suggest", bool, False, help="search for the fastest setting of the run that fits"),
  cli.Flag("picture", str, help="a .png file of the bytes, or of what fits (needs matplotlib)"),
  cli.Flag("json", str, help="a file for the same as data; or s3://, gs://"),
]
CONFIG = "required"
EXAMPLES = [
  "python -m pgjax.plan --config=configs/forkme.py:size=3b --device=H100",
  "python -m pgjax.plan --config=configs/forkme.py:size=10b,batch_size=64 --devices=8",
  "python -m pgjax.plan --config=configs/forkme.py:size=28b,batch_size=128 --devices=8 --hosts=8",
  "python -m pgjax.plan --config=configs/forkme.py --table --device=L4 --picture=fits.png",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
