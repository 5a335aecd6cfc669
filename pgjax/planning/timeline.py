"""How long does a compiled step take, and what of its communication runs beside products?

`of_program` reads the schedule of an optimized program: kernels with their seconds on one GPU, and
collectives, asynchronous ones from their start to their done. `play` runs it with two clocks, one
of the GPU and one of its links.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from pgjax.formats.typed_json import Count
from pgjax.planning import gpus, hlo, hlo_text

# Measured on an H100 (benchmarks/results/2026-11-26-H100.md), as shares of the data sheet's rates.
PRODUCTS = 0.72  # Large products in a step; 0.80 in one product of 8192 x 8192 numbers.
FUSED = 0.45  # Those inside a kernel of attention, assumed: ours were never timed.
BANDWIDTH = 0.865  # A copy.
LAUNCH = 1.5e-6  # Seconds from kernel to kernel.
FREE = frozenset(
  ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
) | {"replica-id", "iota", "opt-barrier", ""}  # fmt: skip


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
  """A stretch of kernels, the start or the end of a collective, or a loop."""

  seconds: float = 0.0  # Of kernels.
  products: float = 0.0  # Of them: of matrix products.
  start: str = ""  # The name of the collective that starts; done: that is waited for.
  done: str = ""
  op: str = ""
  axes: str = ""
  devices: Count = 0  # Of a group, and how many of them are in one host.
  devices_a_host: Count = 0
  sent_bytes: Count = 0
  times: Count = 1  # Iterations of `body`.
  body: list["Event"] = []


class Link(NamedTuple):
  """One op along one set of axes over one kind of link, summed over a step."""

  op: str
  axes: str
  between_hosts: bool


class Traffic(NamedTuple):
  """What a step sends of it."""

  count: int
  sent_bytes: float
  seconds: float
  waited: float  # Seconds of them in which the GPU waits.


class Played(NamedTuple):
  """A step's time, by the model."""

  seconds: float
  kernels: float
  products: float
  traffic: dict[Link, Traffic]


def of_program(
  text: str, gpu: gpus.Gpu, mesh: Mapping[str, int], devices_a_host: int, unknown_trips: int = 1
) -> list[Event]:
  """Of `compiled.as_text()`; mesh as in hlo.collectives."""
  program, entry = hlo_text.parse(text)
  reader = _Reader(program, gpu, mesh, devices_a_host, unknown_trips)
  return list(_merged(reader.events(entry)))


class _Reader(NamedTuple):
  program: hlo_text.Program
  gpu: gpus.Gpu
  mesh: Mapping[str, int]
  devices_a_host: int
  unknown_trips: int

  def events(self, name: str) -> Iterator[Event]:
    """Of a computation, in the order of its schedule."""
    types = {i.name: i.type for i in self.program.get(name, ())}
    for i in self.program.get(name, ()):
      if i.op in FREE:
        continue
      inner = hlo_text.called(i)
      if i.op == "while":
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', i.attributes)
        times = int(trips[1]) if trips else self.unknown_trips
        body = list(_merged(self.events(hlo_text.called(i, "body")[0])))
        yield Event(times=times, body=body)
      elif i.op == "conditional":
        yield from self.events(hlo_text.called(i, "branch_computations|true_computation")[0])
      elif collective := self._collective(i, inner):
        yield from self._starts(i, collective)
      elif i.op.endswith("-done"):
        yield Event(done=i.operands[0])
      elif i.op in ("call", "async-start") and inner:
        yield from self.events(inner[0])
      elif i.op != "async-update":
        yield self._kernel(hlo_text.cost(i, types, self.program))

  def _kernel(self, cost: hlo_text.Cost) -> Event:
    products = 0.0
    if cost.flops:
      reached = FUSED if cost.fused else PRODUCTS
      products = cost.flops / (self.gpu.flops(_DTYPES.get(cost.dtype, "float32")) * reached)
      waves = cost.tiles / self.gpu.cores
      products *= max(1.0, math.ceil(waves) / max(waves, 1e-9)) if waves < 8 else 1.0
    moved = cost.bytes / (self.gpu.bandwidth * BANDWIDTH)
    limit = max(products, moved)
    return Event(seconds=limit + LAUNCH, products=limit if cost.flops else 0.0)

  def _collective(self, i, inner):
    """The instruction that names op and groups, or None."""
    base = i.op.removesuffix("-start")
    if base in hlo.OPS:
      return i._replace(op=base)
    if i.op == "async-start" and inner:
      return next((c for c in self.program.get(inner[0], ()) if c.op in hlo.OPS), None)
    return None

  def _starts(self, i, collective):
    is_start = i.op.endswith("-start")
    shown = f"{collective.op}{'-start' * (is_start and i.op != 'async-start')}"
    line = f"%{collective.name} = {collective.type} {shown}(){collective.attributes}"
    sent = hlo.read_collective(line, self.mesh)
    group = sent.group
    hosts = {device // self.devices_a_host for device in group}
    yield Event(
      start=i.name,
      op=collective.op,
      axes=sent.axes,
      devices=len(group),
      devices_a_host=max(1, len(group) // len(hosts)),
      sent_bytes=sent.sent_bytes,
    )
    if not is_start or '"is_sync":true' in i.attributes.replace(" ", ""):
      yield Event(done=i.name)


_DTYPES = {"bf16": "bfloat16", "f16": "bfloat16"}


def _merged(events: Iterator[Event]) -> Iterator[Event]:
  """Kernels next to each other as one event."""
  seconds = products = 0.0
  for event in events:
    if event.start or event.done or event.body:
      if seconds:
        yield Event(seconds=seconds, products=products)
        seconds = products = 0.0
      yield event
    else:
      seconds, products = seconds + event.seconds, products + event.products
  if seconds:
    yield Event(seconds=seconds, products=products)


def play(events: list[Event], seconds_of: Callable[[Event], float]) -> Played:
  """Runs the schedule; seconds_of: of a collective on its link."""
  clock = _Clock(seconds_of)
  clock.run(events, 1)
  return Played(clock.now, clock.kernels, clock.products, clock.traffic)


class _Clock:
  """The GPU's clock, and when its links are free."""

  def __init__(self, seconds_of):
    self._seconds_of = seconds_of
    self.now = self._free = self.kernels = self.products = 0.0
    self._running: dict[str, tuple[Link, float]] = {}
    self.traffic: dict[Link, Traffic] = {}

  def run(self, events, times):
    """One iteration, whose parts count `times` times in the sums."""
    for event in events:
      if event.body:
        before = self.now
        self.run(event.body, times * event.times)
        again = (event.times - 1) * (self.now - before)
        self.now, self._free = self.now + again, self._free + again
      elif event.start:
        self._start(event, times)
      elif event.done:
        self._wait(event, times)
      else:
        self.now += event.seconds
        self.kernels += times * event.seconds
        self.products += times * event.products

  def _start(self, event, times):
    link = Link(event.op, event.axes, event.devices > event.devices_a_host)
    seconds = self._seconds_of(event)
    self._free = max(self.now, self._free) + seconds
    self._running[event.start] = (link, self._free)
    old = self.traffic.get(link, Traffic(0, 0, 0.0, 0.0))
    self.traffic[link] = Traffic(
      old.count + times, old.sent_bytes + times * event.sent_bytes, old.seconds + times * seconds,
      old.waited,
    )  # fmt: skip

  def _wait(self, event, times):
    if event.done not in self._running:
      return
    link, end = self._running.pop(event.done)
    waited = max(0.0, end - self.now)
    self.now += waited
    old = self.traffic[link]
    self.traffic[link] = old._replace(waited=old.waited + times * waited)
