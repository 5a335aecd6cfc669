"""How fast are the links between the GPUs of a host, and between hosts?

Inside a host: NVLink, or PCIe where a GPU has none (planning/gpus.py). Between hosts: the network
of the vendors' and clouds' usual nodes of eight, as the share of one GPU.
"""

import math
from typing import NamedTuple

from pgjax.planning import gpus, timeline

# Gb/s between hosts for each GPU. H100, H200, B200: eight InfiniBand or Ethernet adapters of 400 a
# host (DGX data sheets); A100: eight of 200; the others: one adapter of 100 for eight GPUs.
NETWORK_GBIT = {
  "T4": 12.5,
  "L4": 12.5,
  "4090": 12.5,
  "A100-40": 200.0,
  "A100-80": 200.0,
  "H100": 400.0,
  "H200": 400.0,
  "B200": 400.0,
}
REACHED = 0.8  # Share of a link's rate in a large collective: an assumption, not measured here.
LATENCY, HOST_LATENCY = 10e-6, 10e-6  # Seconds of a collective, and for each doubling of hosts.


class Links(NamedTuple):
  """Bytes a second of one GPU in one direction, and the GPUs of a host."""

  inside: float
  between: float
  devices_a_host: int

  def rate(self, devices: int, devices_a_host: int) -> float:
    """Of a ring over these devices: each member in a host uses the adapter of its own."""
    if devices <= devices_a_host:
      return self.inside * REACHED
    return min(self.inside, self.between * devices_a_host) * REACHED

  def seconds(self, event: timeline.Event) -> float:
    """Of one collective."""
    hosts = event.devices / event.devices_a_host
    latency = LATENCY + HOST_LATENCY * math.log2(max(1.0, hosts))
    return latency + event.sent_bytes / self.rate(event.devices, event.devices_a_host)


def links(name: str, devices_a_host: int, link_gbit: float | None = None) -> Links:
  """Of the GPU with this name in gpus.GPUS; link_gbit: another network, Gb/s a GPU."""
  gbit = NETWORK_GBIT[name] if link_gbit is None else link_gbit
  return Links(gpus.GPUS[name].link_bandwidth, gbit / 8 * 1e9, devices_a_host)
