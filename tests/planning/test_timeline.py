"""The model of a compiled schedule, against sums by hand over small programs."""

import pytest

from pgjax import cli, plan
from pgjax.config import load as config_load, validate as config_validate
from pgjax.planning import gpus, hlo_text, interconnects, mesh_choice, scaling, timeline

H100 = gpus.GPUS["H100"]
PROGRAM = """HloModule jit_step, is_scheduled=true

%sliced (p0: f32[4,1048576], p1: s32[]) -> f32[1048576] {
  %p0 = f32[4,1048576]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = f32[1,1048576]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,1048576}
  ROOT %row = f32[1048576]{0} bitcast(%piece)
}

%body (t: (s32[], bf16[4096,4096])) -> (s32[], bf16[4096,4096]) {
  %t = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[4096,4096]{1,0} get-tuple-element(%t), index=1
  %w = ((bf16[512,4096]{1,0}), bf16[4096,4096]{1,0}) all-gather-start(%x), replica_groups=[2,8]<=[16], dimensions={0}, backend_config={"collective_backend_config":{"is_sync":false}}
  %product = (bf16[4096,4096]{1,0}, s8[33554432]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %gathered = bf16[4096,4096]{1,0} all-gather-done(%w)
  %g = f32[1024]{0} all-reduce(%x), replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
  ROOT %out = (s32[], bf16[4096,4096]{1,0}) tuple(%i, %gathered)
}

ENTRY %main (a: f32[4,1048576], b: s32[], c: (s32[], bf16[4096,4096])) -> f32[1048576] {
  %a = f32[4,1048576]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = (s32[], bf16[4096,4096]{1,0}) parameter(2)
  %loop = (s32[], bf16[4096,4096]{1,0}) while(%c), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %fused = f32[1048576]{0} fusion(%a, %b), kind=kLoop, calls=%sliced
}
"""  # noqa: E501


def of_program(rate):
  """Played on a mesh of two hosts, replica x data, with links of this rate in bytes a second."""
  events = timeline.of_program(PROGRAM, H100, {"replica": 2, "data": 8}, 8)
  return timeline.play(events, lambda event: event.sent_bytes / rate)


def test_kernels_take_the_longer_of_products_and_memory_and_loops_repeat_them():
  product = 2 * 4096**3 / (989e12 * timeline.PRODUCTS)  # 1024 tiles: 7.76 of 8 waves of 132.
  product *= 8 / (1024 / 132)
  moved = (4 + 4 * 2**20 + 4 * 2**20) / (H100.bandwidth * timeline.BANDWIDTH)  # One row, not four.
  run = of_program(1e30)
  assert run.kernels == pytest.approx(3 * product + moved + 4 * timeline.LAUNCH)
  assert run.products == pytest.approx(3 * product)
  assert run.seconds == pytest.approx(run.kernels)


def test_a_collective_hides_behind_the_kernels_between_its_start_and_its_done():
  gathered, reduced = 2 * 4096**2 * 7 // 8, 2 * 4 * 1024 // 2
  rate = 1e12
  run = of_program(rate)
  gather = timeline.Link("all-gather", "data", between_hosts=False)
  reduce = timeline.Link("all-reduce", "replica", between_hosts=True)
  assert set(run.traffic) == {gather, reduce}
  assert run.traffic[gather].count == run.traffic[reduce].count == 3
  assert run.traffic[gather].sent_bytes == 3 * gathered
  assert run.traffic[gather].waited == 0  # 29 us within a product of 0.2 ms.
  assert run.traffic[reduce].sent_bytes == 3 * reduced
  assert run.traffic[reduce].waited == pytest.approx(3 * reduced / rate)  # It is synchronous.
  slow = of_program(1e9)
  waited = sum(traffic.waited for traffic in slow.traffic.values())
  assert slow.seconds == pytest.approx(slow.kernels + waited)
  assert slow.traffic[gather].waited == pytest.approx(3 * gathered / 1e9 - run.products
                                                      - 3 * timeline.LAUNCH)  # fmt: skip


def test_updates_in_place_count_by_the_update():
  body = """%f (p: f32[100,1000], u: f32[1,1000], i: s32[]) -> f32[100,1000] {
  %p = f32[100,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[100,1000]{1,0} dynamic-update-slice(%p, %u, %i, %i)
}

ENTRY %main (p: f32[100,1000], u: f32[1,1000], i: s32[]) -> f32[100,1000] {
  ROOT %r = f32[100,1000]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%f
}
"""
  program, entry = hlo_text.parse(body)
  cost = hlo_text.cost(program[entry][0], {}, program)
  assert cost.bytes == 4000 + 4 + 4000  # The update, the index, the row written.


def test_a_ring_over_hosts_uses_the_adapter_of_each_of_its_gpus():
  links = interconnects.links("H100", 8)
  assert links.rate(8, 8) == 450e9 * interconnects.REACHED
  assert links.rate(16, 1) == 50e9 * interconnects.REACHED  # One GPU a host.
  assert links.rate(64, 8) == 400e9 * interconnects.REACHED
  assert interconnects.links("H100", 8, 100).rate(64, 8) == 100e9 * interconnects.REACHED
  assert set(interconnects.NETWORK_GBIT) == set(gpus.GPUS)


@pytest.mark.slow
def test_scaling_keeps_the_batch_or_the_batch_a_gpu():
  config = config_load.load("configs/forkme.py:variant=tiny", {"total_steps": 10,
                                                                "total_epochs": None})  # fmt: skip
  config = config_validate.validated(config)
  cluster = mesh_choice.Cluster(4, 4, H100, 80e9)
  fixed, a_gpu = scaling.series(config, cluster, {"data": 4}, scaling.Measure(2e9, 0.07, 0.03))
  for one in (fixed, a_gpu):
    own = next(row for row in one.rows if row.num_devices == 4)
    assert (own.how, own.seconds, own.bytes, own.batch_size) == (
      "compiled",
      pytest.approx(0.1),
      2e9,
      32,
    )
    assert len(one.rows) + len(one.left_out) == 11
    for row in one.rows:
      product = 1
      for n in row.mesh.values():
        product *= n
      assert product == row.num_devices
  assert {row.batch_size for row in fixed.rows} == {32}
  assert all(row.batch_size == 8 * row.num_devices for row in a_gpu.rows)
  text = scaling.page([fixed, a_gpu], 4)
  assert text.count("compiled") == 2
  assert "batch of 8 a GPU" in text


def test_mistakes_in_the_cluster_are_reported(capsys):
  for flags, message in (
    (["--hosts=0"], "--hosts=0"),
    (["--link_gbit=0"], "from 1 to 10000"),
    (["--table", "--hosts=2"], "leave out --hosts"),
    (["--devices=8", "--hosts=3"], "cannot be divided among 24 devices"),
  ):
    argv = ["plan", "--config=configs/forkme.py", *flags]
    with pytest.raises(SystemExit):
      cli.run(plan.main, plan.__doc__, plan.FLAGS, config=plan.CONFIG, argv=argv)
    assert message in capsys.readouterr().err
