"""pgjax.plan reports the bytes of the compiled step, and what an independent count gives."""

import contextlib
import json
import pathlib
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import msgspec
import pytest
import tiny

import pgjax
from configs import common
from pgjax import cli, plan
from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import device_feed
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.params import tree as param_tree
from pgjax.planning import (
  autotune,
  compiler as compiler_lib,
  gpus,
  hlo,
  memory,
  page as plan_page,
  savings,
  scaling,
  step_time,
  table as plan_table,
  timeline,
)

GIB = 2**30
ADAPTERS = [("llm/layers/(attn|mlp)/.*", 'lora(rank=2, base="nf4")'), (".*", 'freeze("bfloat16")')]


def config(**fields):
  """A checked config of the tiny model, as the planner takes it."""
  base = config_load.load(
    "configs/forkme.py:variant=tiny", {"total_steps": 10, "total_epochs": None}
  )
  base.update(dict(res=tiny.RES, text_len=tiny.TEXT_LEN, sharding_strategy=tiny.FSDP))
  base.model.img, base.model.llm = dict(tiny.IMG, variant="tiny"), dict(tiny.LLM)
  for name, value in fields.items():
    base[name] = value
  base.input.batch_size = 8
  return config_validate.validated(base)


def compiled_run(**fields):
  """The tiny run of that config, compiled for 8 devices."""
  run = tiny.Run(tiny.config(**fields), tiny.model(), tiny.mesh(devices=8))
  place = mesh_lib.batch_sharding(run.mesh)
  batch = {
    name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for name, a in tiny.batch().items()
  }
  return run, batch, run.train_step.lower(run.abstract, batch).compile()


@pytest.fixture(scope="module")
def full():
  return compiled_run()


@pytest.mark.parametrize(
  "fields",
  [
    pytest.param({}, marks=pytest.mark.long),
    pytest.param({"params": ADAPTERS}, marks=pytest.mark.slow),
    pytest.param({"optax_name": "big_vision.sgd", "optax": {}}, marks=pytest.mark.long),
  ],
)
def test_inputs_and_temporaries_are_those_of_the_compiled_step(fields, full):
  run, batch, program = compiled_run(**fields) if fields else full
  analysis = program.memory_analysis()
  need = memory.need(
    run.config, run.model, run.abstract, batch, run.rules, analysis.temp_size_in_bytes
  )
  assert need.arguments == analysis.argument_size_in_bytes
  assert need.step == analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  assert need.total == need.step + 2 * need.batch + memory.RESERVE_BYTES + round(0.03 * need.step)


@pytest.mark.long
def test_lora_bytes_are_the_factors_their_gradients_and_their_moments():
  """Adapters of rank 2 on a quantized base: only the factors train, in float32."""
  run, batch, _ = compiled_run(params=ADAPTERS, sharding_strategy=[(".*", "replicate()")])
  need = memory.need(run.config, run.model, run.abstract, batch, run.rules, 10**9)
  factors = [a for n, a in param_tree.flatten(run.abstract.params).items() if n.startswith("lora/")]
  assert need.lora == 4 * sum(a.size for a in factors)
  assert need.trained == 0
  assert need.optimizer == 2 * need.lora + 2 * 4  # Two moments, and the counts of two transforms.
  assert need.gradients == need.lora
  assert need.batch == 4 * (16 * 16 * 3 + 3 * (tiny.TEXT_LEN + 1))


def counted_by_lines(text, depth):
  """(count, bytes of results) of each collective, counted otherwise than in planning/hlo.py.

  Every loop of this program runs once a layer, except that of the loss, which runs once: a
  collective in a while loop of a tower runs `depth` times.
  """
  widths = dict(f32=4, s32=4, bf16=2, pred=1, u32=4)
  counted = {}
  computation, in_loop = "", set(re.findall(r"body=%([\w.\-]+)", text))
  loss = {m for line in text.splitlines() if " while(" in line and "known_trip_count" not in line
          for m in re.findall(r"body=%([\w.\-]+)", line)}  # fmt: skip
  for line in text.splitlines():
    if head := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line):
      computation = head[1]
    match = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", line)
    if match:
      times = depth if computation in in_loop - loss else 1
      size = 0
      for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
        count = 1
        for d in filter(None, dims.split(",")):
          count *= int(d)
        size += widths[dtype] * count
      n, total = counted.get(match[2], (0, 0))
      counted[match[2]] = (
        n + times,
        total + times * size * (8 if match[2] == "reduce-scatter" else 1),
      )
  return counted


def test_collectives_are_those_of_the_program(full):
  run, _, program = full
  text = program.as_text()
  collectives = hlo.collectives(text, run.mesh.shape)
  assert {c.axes for c in collectives} == {"data"}
  expected = counted_by_lines(text, depth=tiny.LLM["depth"])
  assert {c.op: (c.count, c.bytes) for c in collectives} == expected
  assert sum(n for n, _ in expected.values()) > 50
  events = timeline.of_program(text, gpus.GPUS["H100"], run.mesh.shape, 8)
  traffic = timeline.play(events, lambda event: 1e-6).traffic
  sent = {(link.op, link.axes): (t.count, t.sent_bytes) for link, t in traffic.items()}
  assert sent == {(c.op, c.axes): (c.count, c.sent_bytes) for c in collectives}


PROGRAM = """
HloModule jit_step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gathered.1 = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups=[4,2]<=[8]
  %both = ((bf16[4]{0}, f32[2]{0}), (bf16[16]{0}, f32[8]{0})) all-gather-start(%x, %y), replica_groups={{0,2,4,6},{1,3,5,7}}
  %done = f32[16]{0} all-gather-done(%gathered.1)
  %scattered = ((f32[32]{0}), f32[8]{0}) reduce-scatter-start(%x), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, to_apply=%add
  %dot.1 = bf16[4,6]{1,0} dot(%left, %right), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %left = bf16[4,8]{1,0} parameter(0)
}

%fused (a: f32[2,5,3]) -> f32[2,5,7] {
  %a = f32[2,5,3]{2,1,0} parameter(0)
  %custom = (f32[2,5,7]{2,1,0}, s8[100]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4,8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %open = (s32[], f32[4,8]) while(%t), condition=%cond, body=%body2
  %f = f32[2,5,7]{2,1,0} fusion(%a), kind=kCustom, calls=%fused
  %all-reduce.7 = f32[10]{0} all-reduce(%f), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%body2 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %sent = f32[6]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2}}
}
"""  # noqa: E501


def test_loops_groups_and_async_operations_are_read_from_a_program():
  mesh = dict(replica=4, data=2)
  assert hlo.collectives(PROGRAM, mesh, unknown_trips=5) == [
    hlo.Collective("all-gather", "data", 3, 3 * 64, 3 * 32),
    hlo.Collective("all-gather", "replica", 3, 3 * 64, 3 * 48),
    hlo.Collective("all-reduce", "replica+data", 1, 40, 70),
    hlo.Collective("collective-permute", "data", 5, 5 * 24, 5 * 24),
    hlo.Collective("reduce-scatter", "replica+data", 3, 3 * 128, 3 * 96),
  ]
  assert hlo.product_flops(PROGRAM) == 3 * 2 * 4 * 6 * 8 + 2 * 2 * 5 * 7 * 3


NEED = memory.Need(
  trained=12 * 10**9,
  frozen=0,
  lora=0,
  optimizer=24 * 10**9,
  batch=10**7,
  other=4,
  gradients=8 * 10**9,
  workspace=3 * 10**9,
  logits=10**9,
)


def test_the_verdict_includes_the_reserve_and_jaxs_preallocation():
  """47 GB of inputs and temporaries, 0.02 GB of batches, 0.6 GB and 3% of reserve."""
  assert NEED.total == 47_010_000_004 + 2 * 10**7 + 600_000_000 + 1_410_300_000
  assert plan_page.verdict(NEED, 48e9).startswith("does not fit, 1.0 GB")
  assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in plan_page.verdict(NEED, 60e9)
  assert plan_page.verdict(NEED, 80e9) == "fits."


def test_prefetched_batches_are_as_many_as_the_feed_prefetches(monkeypatch):
  assert NEED.waiting == device_feed.PREFETCH_DEPTH * NEED.batch
  monkeypatch.setattr(device_feed, "PREFETCH_DEPTH", 7)
  assert NEED.waiting == 7 * NEED.batch


def test_time_is_compute_at_the_mfu_and_communication_at_the_links():
  collective = hlo.Collective("all-gather", "data", 1, 0, sent_bytes=45 * 10**9)
  step = compiler_lib.Step("H100", {"data": 2}, NEED, 989e12, 618e12, [collective], 1.0)
  time = step_time.estimate(step, gpus.GPUS["H100"], "bfloat16", 0.4)
  assert time.compute == pytest.approx(0.5 / 0.4)
  assert time.communication == pytest.approx(0.1)
  assert time.low == pytest.approx(0.5 / 0.5)
  assert time.high == pytest.approx(0.5 / 0.3 + 0.1)
  on_t4 = step_time.estimate(step, gpus.GPUS["T4"], "bfloat16", 0.4)
  assert on_t4.compute == pytest.approx(989 / 2 / 8.1 / 0.4)  # In float32.
  assert msgspec.json.decode(msgspec.json.encode(step), type=compiler_lib.Step) == step


def estimates(**fields):
  """PaliGemma 2 3B with the bytes above."""
  from pgjax.models import paligemma
  from pgjax.params import of_model

  changed = config_load.load("configs/forkme.py:size=3b", fields)
  changed = config_validate.validated(changed)
  model = paligemma.Model(**changed.model)
  return savings.PlannedRun(changed, model, of_model.stored_params(model, changed), NEED, 1)


def test_switches_save_what_they_saved_when_compiled():
  """Compiled for an H200 at batch 32: least_memory 1.47 GB less; four parts more than before."""
  named = {json.dumps(s.overrides): s for s in savings.cheapest(estimates(), most=99)}
  remat = named['{"remat": "least_memory"}']
  assert remat.saves == pytest.approx(1.47e9, rel=0.01)
  assert not any("microbatches" in name for name in named)  # A second set of gradients.
  # 47.80 GB become 32.90 with adam8bit, whose state is 24.26 before.
  eight_bit = named['{"optax_name": "pgjax.adam8bit"}'].saves
  assert eight_bit / NEED.optimizer == pytest.approx((47.80 - 32.90) / 24.26, rel=0.05)


def test_suggested_flags_are_valid_and_change_the_config(monkeypatch):
  """Parsed as by a shell, each gives a valid config that differs."""
  import shlex

  run = estimates()
  for switch in savings.cheapest(run, most=99):
    args = shlex.split(
      "plan " + savings.flags(switch.overrides) + " --config=configs/forkme.py:size=3b"
    )
    parsed = cli.parse(args, [cli.Flag("config", str)], "required")
    changed = config_validate.validated(config_load.load(parsed.config, parsed.overrides))
    assert changed.to_dict() != run.config.to_dict(), switch
  chosen = savings.cheapest(run, excess_bytes=40 * 10**9)
  assert len(chosen) == 3
  assert "lora" in chosen[-1].overrides["params"]  # The others cannot save so much.


def fake_step(total, executed, parts=1):
  """A compiled step that needs N GB."""
  need = msgspec.structs.replace(
    NEED, trained=0, optimizer=0, gradients=0, batch=0, workspace=int(total * 1e9)
  )
  return compiler_lib.Step("H100", {"data": 1}, need, 100e12, executed * 1e12, [], 1.0)


def test_the_fastest_that_fits_is_suggested():
  sizes = {"products_saveable": (60, 100), "attention_saveable": (30, 120), "balanced": (25, 125)}
  sizes |= {"mlp_gate_saveable": (50, 105), "outputs_saveable": (35, 115)}

  def compile_step(changed):
    return fake_step(*sizes.get(changed.remat, (20, 140)))

  def chosen(limit):
    fields = dict(gpu=gpus.GPUS["H100"], limit_bytes=limit, mfu=0.4, num_devices=1)
    return autotune.best(
      list(autotune.candidates(config(remat="balanced", dtype="bfloat16"), compile_step, **fields))
    )

  assert chosen(80e9).overrides == {"remat": "products_saveable"}
  assert chosen(55e9).overrides == {"remat": "mlp_gate_saveable"}
  assert chosen(40e9).overrides == {"remat": "outputs_saveable"}
  assert chosen(33e9).overrides == {"remat": "attention_saveable"}
  assert chosen(29e9).overrides == {}
  assert chosen(22.5e9).overrides == {"remat": "least_memory"}


def test_microbatches_come_next_and_adapters_last():
  def compile_step(changed):
    adapted = any("lora" in spec for _, spec in changed.params)
    return fake_step(5 if adapted else 32 / changed.microbatches, 100)

  def chosen(limit):
    fields = dict(gpu=gpus.GPUS["H100"], limit_bytes=limit, mfu=0.4, num_devices=1)
    return autotune.best(
      list(autotune.candidates(config(remat="balanced", dtype="bfloat16"), compile_step, **fields))
    )

  assert chosen(18e9).overrides == {"microbatches": "2", "remat": "least_memory"}
  assert chosen(10e9).overrides == {"microbatches": "4", "remat": "least_memory"}


class FakeCompiler:
  """10 GB and 1 GB an example; `refuses`: its shapes do not fit."""

  def __init__(self, refuses=False):
    self.refuses, self.asked = refuses, []

  def step(self, config, num_devices, compiled=True):
    batch = config.input.batch_size
    self.asked.append((batch, compiled))
    need = msgspec.structs.replace(NEED, trained=0, optimizer=0, gradients=0, batch=0, other=0)
    workspace = (90 if self.refuses else 10 + batch * compiled) * 10**9
    return SimpleNamespace(need=msgspec.structs.replace(need, workspace=workspace))

  def close(self):
    pass


def table_rows(compiler, limit_bytes):
  checked = config()
  return list(
    plan_table.rows(
      [plan_table.Case("3b", "224", "full")],
      lambda case, batch: SimpleNamespace(input=SimpleNamespace(batch_size=batch), config=checked),
      lambda: compiler,
      batches=[1, 4, 16, 64],
      num_devices=1,
      limit_bytes=limit_bytes,
      processes=1,
    )
  )


def test_a_row_of_the_table_is_interpolated_from_two_compilations():
  total = lambda gigabytes: gigabytes * 1.03 + 0.6  # noqa: E731
  compiler = FakeCompiler()
  [row] = table_rows(compiler, 30e9)
  assert compiler.asked == [(1, False), (4, True), (16, True)]
  assert [c.how for c in row.cells] == ["about", "compiled", "compiled", "about"]
  assert [c.total / 1e9 for c in row.cells] == pytest.approx([total(g) for g in (11, 14, 26, 74)])
  assert row.largest(30e9) == 16
  [row] = table_rows(compiler := FakeCompiler(), 13e9)
  assert compiler.asked == [(1, False), (4, True), (1, True)]
  assert row.largest(13e9) == 1
  [row] = table_rows(compiler := FakeCompiler(refuses=True), 80e9)
  assert compiler.asked == [(1, False)]
  assert {c.how for c in row.cells} == {"at least"}
  assert row.largest(80e9) == 0


def test_a_case_is_the_config_with_other_arguments():
  case = plan_table.Case("10b", "448", "qlora")
  spec = case.spec("configs/forkme.py:size=3b,text_len=64,batch_size=8")
  assert spec == "configs/forkme.py:size=10b,text_len=64,res=448,tune=qlora"
  changed = plan_table.config_of("configs/forkme.py", {"optax.b1": "0.8"}, case, 64)
  assert (changed.res, changed.input.batch_size, changed.optax.b1) == (448, 64, 0.8)
  assert changed.model.llm.variant == "gemma2_9b"


def test_pictures_are_drawn(tmp_path):
  pytest.importorskip("matplotlib")
  from pgjax.planning import figure as plan_figure

  plan_figure.bar(str(tmp_path / "bar.png"), NEED, 80e9, "a run")
  plan_figure.grid(str(tmp_path / "grid.png"), table_rows(FakeCompiler(), 30e9), "H100", 30e9)
  rows = [scaling.Row(n, n, {"data": n}, 1e9, 0.1, "modelled") for n in (1, 8)]
  plan_figure.scaling(str(tmp_path / "scaling.png"), [scaling.Series("a", rows, {})], "a run")
  for name in ("bar.png", "grid.png", "scaling.png"):
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--device=h1000"], "Did you mean 'H100'?"),
    (["--device=H100", "--hbm_gb=80"], "give one of them"),
    (["--hbm_gb=-1"], "must be a number of gigabytes"),
    (["--devices=3"], "cannot be divided among 3 devices; try 30 or 33"),
    (["--devices=0"], "--devices=0"),
    (["--mfu=40"], "--mfu=40"),
    (["--table", "--suggest"], "one at a time"),
    (["--table", "--batches=1,x"], "'x' must be a whole number"),
    (["--table", "--sizes=4b"], "must be one of v1, 3b, 10b, 28b"),
    (["--picture=x.jpg"], "must end with .png"),
  ],
)
def test_mistakes_are_reported_before_anything_is_compiled(flags, message, capsys, monkeypatch):
  monkeypatch.setattr(compiler_lib, "Compiler", lambda *_: pytest.fail("it started to compile"))
  argv = ["plan", "--config=configs/forkme.py", *flags]
  with pytest.raises(SystemExit) as end:
    cli.run(plan.main, plan.__doc__, plan.FLAGS, config=plan.CONFIG, argv=argv)
  assert end.value.code == 1
  assert message in capsys.readouterr().err


def test_unknown_gpus_name_the_nearest():
  with pytest.raises(UserError, match="Did you mean A100-40 or A100-80"):
    gpus.named("A100")
  assert gpus.named("a100-80") == "A100-80"
  assert gpus.of_kind("NVIDIA A100-SXM4-40GB") == gpus.GPUS["A100-40"]
  assert gpus.of_kind("NVIDIA A100-SXM4-80GB") == gpus.GPUS["A100-80"]
  assert "core_count: 132" in gpus.target_config("H200")


TRUTHS = [
  ({}, 1),
  ({}, 8),
  ({"params": [("llm/layers/attn/.*", "train"), (".*", 'freeze("bfloat16")')]}, 1),
  ({"params": [("img/head/.*", "train"), ("img/.*", "freeze"), ("llm/.*", "train")]}, 8),
  ({"microbatches": 2}, 1),
  ({"params": ADAPTERS, "dtype": "bfloat16"}, 8),
]


@pytest.mark.slow
def test_the_plan_cache_depends_on_every_source_of_the_package(monkeypatch, tmp_path):
  package = tmp_path / "pgjax"
  shutil.copytree(pathlib.Path(pgjax.__file__).parent, package)
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path / "cache"))
  monkeypatch.setattr(pgjax, "__path__", [str(package)])
  case = dict(config=dict(input=dict(batch_size=8)), gpu=None, num_devices=1, compiled=True)
  files = {compiler_lib._cache_file(case)}  # noqa: SLF001
  modules = sorted(package.rglob("*.py"))
  for module in modules:
    module.write_text(module.read_text() + "# Another.\n")
    files.add(compiler_lib._cache_file(case))  # noqa: SLF001
  assert len(files) == 1 + len(modules) > 100


@pytest.mark.long
def test_the_plan_is_the_memory_of_the_compiled_step(monkeypatch, tmp_path):
  """Compiler, a separate process, against a compilation in this one."""
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path))
  with contextlib.closing(compiler_lib.Compiler(None, 8)) as compiler:
    for fields, num_devices in TRUTHS:
      changed = config(**fields, remat="none")
      need = compiler.step(changed, num_devices).need
      here = compiler_lib.look(changed, None, num_devices)
      assert need.step == pytest.approx(here.need.step, rel=0.1), (fields, num_devices)
    files = list(tmp_path.glob("plan/*.json"))
    assert len(files) == len(TRUTHS)
    changed = files[0].read_text().replace('"compiled_for":"cpu"', '"compiled_for":"cached"')
    files[0].write_text(changed)
    again = [compiler.step(config(**f, remat="none"), n).compiled_for for f, n in TRUTHS]
    assert sorted(again) == ["cached"] + ["cpu"] * 5


@pytest.mark.slow
def test_the_command_prints_a_page_and_writes_data(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(tmp_path))
  monkeypatch.setattr(compiler_lib, "can_compile_for_gpus", lambda: False)
  out = tmp_path / "plan.json"
  argv = ["plan", "--config=configs/forkme.py:variant=tiny", "--devices=8", f"--json={out}"]
  with pytest.raises(SystemExit) as end:
    cli.run(plan.main, plan.__doc__, plan.FLAGS, config=plan.CONFIG, argv=argv)
  assert not end.value.code
  page = capsys.readouterr().out
  assert "compiled for the CPU" in page
  assert "all-gather" in page
  plan_json = json.loads(out.read_text())
  assert plan_json["fits"]
  assert sum(plan_json["memory"].values()) == pytest.approx(plan_json["total_bytes"], abs=2000)
  assert sys.modules.get("jax") is jax


def test_suggested_adapters_are_the_presets():
  config = common.base()
  for base, name in (("bfloat16", "lora"), ("nf4", "qlora")):
    suggested = json.loads(savings.adapters(config, base)["params"])
    assert [tuple(pair) for pair in suggested] == common.TUNE[name]
