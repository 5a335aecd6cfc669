"""Every field of every JSON that is read, replaced by what does not belong there: a sentence.

Each kind of file is written once; then each field of it is damaged in each way, and read in the way
that users meet: it still works, or UserError (DamagedError) names the file and the field.
"""

import copy
import functools
import json
import pathlib
import shutil
import struct
import warnings
import zipfile
from types import SimpleNamespace

import jax
import msgspec
import numpy as np
import pytest
import small_checkpoint

from pgjax import cli, convert, disk, evaluate
from pgjax.checkpoints import (
  checksums as checksums_lib,
  orbax_items,
  saver as saver_lib,
  source as source_lib,
  watchers,
  workdir as workdir_lib,
)
from pgjax.data import loader as loader_lib, masks, tokenizer
from pgjax.data.sources import registry
from pgjax.datasets import base, chartqa
from pgjax.errors import UserError
from pgjax.evaluation import journal, score_checkpoint
from pgjax.formats import lazy_array, npz as npz_lib, safetensors
from pgjax.huggingface import config_json as hf_config, names as hf_names, peft
from pgjax.inference import engine, grammar, json_grammar
from pgjax.layers import lora
from pgjax.models import paligemma
from pgjax.params import lazy, names as param_names, of_model, rules as param_rules
from pgjax.planning import compiler as compiler_lib, hlo, memory
from pgjax.training import run_log

GONE = object()
VALUES = (None, [1], "x", GONE, 10**400)
MORE = (3, -1, 1e308, {}, [])
TEXTS = (b"", b"{", b"\xff\xfe", b"NaN", b'{"a": NaN}', b"[" * 100_000, b"null", b"1e999", b'"a')
MANY = 12  # Of a dict with more keys only the first are damaged.


def damaged(value, values, path=()):
  """(path, the whole with one field replaced or gone) for each field inside `value`."""
  keys = list(value) if isinstance(value, dict) else range(min(1, len(value)))
  wide = len(keys) > MANY and len({type(v) for v in value.values()}) == 1
  for key in keys[:3] if wide else keys:
    for new in values:
      whole = copy.copy(value)
      if new is GONE:
        del whole[key]
      else:
        whole[key] = new
      yield (*path, key), whole
    if isinstance(value[key], dict | list):
      for inner, part in damaged(value[key], values, (*path, key)):
        whole = copy.copy(value)
        whole[key] = part
        yield inner, whole


class Walk:
  """What came of the damages of one file."""

  def __init__(self, values, file, read, *, quiet=False, entry=None, also=None):
    """quiet: the file is only ever passed over. entry: its damaged line. also: may be named."""
    self.values, self.quiet, self.entry, self.also = values, quiet, entry, also
    self.file, self.read = file, read
    self.tried, self.traces, self.vague = 0, [], []

  def __call__(self):
    whole = self.file.read_bytes()
    lines = whole.splitlines() if self.entry is not None else [whole]
    number = self.entry or 0
    value = json.loads(lines[number])
    for path, bad in damaged(value, self.values):
      self.one(lines, number, json.dumps(bad).encode(), path)
    for text in (*TEXTS, lines[number][: len(lines[number]) // 2]):
      self.one(lines, number, text, ())
    for root in self.values:
      if root is not GONE:
        self.one(lines, number, json.dumps(root).encode(), ())
    self.file.write_bytes(whole)
    self.read(())
    return self

  def one(self, lines, number, text, path):
    self.file.write_bytes(b"\n".join([*lines[:number], text, *lines[number + 1 :]]))
    self.tried += 1
    try:
      self.read(path)
    except (UserError, workdir_lib.DamagedError) as error:
      message = str(error)
      fields = [str(key) for key in path if isinstance(key, str)]
      near = not fields or "$" in message or "model." in message or "No model has" in message
      near = near or any(field[:5].lower() in message.lower() for field in fields)
      named = self.file.name in message or (self.also and self.also in message)
      if self.quiet or not named or not near or "\n" in message:
        self.vague.append((path, text[:80], message[:300]))
    except Exception as error:
      self.traces.append((path, text[:80], f"{type(error).__name__}: {error}"[:200]))

  def check(self):
    assert not self.traces, f"{len(self.traces)} of {self.tried}: {self.traces[:5]}"
    assert not self.vague, f"{len(self.vague)} of {self.tried}: {self.vague[:5]}"


@pytest.fixture(params=[VALUES, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
def values(request):
  """What fields are replaced by."""
  return request.param


@pytest.fixture
def walk(values):
  return functools.partial(Walk, values)


@pytest.fixture(scope="module")
def step(tmp_path_factory, root):
  return pathlib.Path(small_checkpoint.write(tmp_path_factory.mktemp("run") / "7", root))


@pytest.fixture(scope="module")
def source(step):
  return source_lib.open_source(str(step))


@pytest.fixture
def hf_folder(tmp_path, source):
  folder = tmp_path / "hf"
  folder.mkdir()
  safetensors.write_safetensors(folder, hf_names.to_hf(source.leaves), shard_bytes=120_000)
  fields = dict(res=source.res, vocab_size=1792, image_token_id=1791, dtype="float32")
  (folder / "config.json").write_text(json.dumps(hf_config.config_json(source.model, **fields)))
  (folder / "tokenizer.model").write_bytes(source.tokenizer)
  return folder


@pytest.fixture
def peft_folder(tmp_path, source, hf_folder):
  folder, shapes = (
    tmp_path / "peft",
    of_model.param_shapes(paligemma.Model(**source.model), source.res),
  )
  rule = param_rules.Rule("lora", rank=2, alpha=4.0)
  adapters = {}
  for i, name in enumerate(["llm/layers/mlp/linear", "llm/layers/attn/q_einsum/w"]):
    rule = rule._replace(alpha=4.0 + i)
    sizes = lora.factor_shapes(param_names.matrix(name), shapes[name], 2)
    a, b = (lazy_array.of_array(np.ones(sizes[f], np.float32)) for f in "ab")
    adapters[name] = lazy.Adapter(a, b, rule)
  peft.write(folder, peft.Folder(adapters, {}, str(hf_folder)), shapes)
  return folder


@pytest.fixture
def npz(tmp_path, source):
  path = tmp_path / "x.npz"
  npz_lib.write_npz(path, {f"params/{n}": leaf for n, leaf in source.leaves.items()})
  facts = dict(model=source.model, res=source.res, image_token=1791)
  path.with_name("x.npz.pgjax.json").write_text(json.dumps(facts))
  return path


def opens(name, *load):
  """Opens a CKPT, and reads the arrays where what was damaged is about them."""

  def read(path):
    opened = source_lib.open_source(str(name))
    if not path or path[0] in load:
      for leaf in opened.leaves.values():
        leaf.whole()

  return read


def test_a_step_folder(walk, step, tmp_path):
  folder = shutil.copytree(step, tmp_path / "7")

  sizes = json.loads((folder / "files.json").read_text())

  def read(path):
    now = sizes | {"run.json": (folder / "run.json").stat().st_size}
    (folder / "files.json").write_text(json.dumps(now))
    opens(folder, "shapes", "sums")(path)
    opened = engine.open_checkpoint(str(folder))
    score_checkpoint.saved_config(opened.source, {})

  walk(folder / "run.json", read)().check()
  walk(folder / "files.json", lambda _: workdir_lib.find(str(folder)))().check()


def test_a_hugging_face_folder(walk, hf_folder):
  walk(hf_folder / "config.json", opens(hf_folder))().check()
  walk(hf_folder / safetensors.INDEX, opens(hf_folder))().check()


def test_a_folder_of_peft(walk, peft_folder):
  walk(peft_folder / peft.CONFIG, opens(peft_folder))().check()


def test_the_files_beside_an_npz(walk, npz):
  walk(npz.with_name("x.npz.pgjax.json"), opens(npz))().check()


def test_a_safetensors_header(walk, hf_folder):
  """The header's length follows its content, which must fit the data behind it."""
  path = sorted(hf_folder.glob("*.safetensors"))[-1]
  data = path.read_bytes()
  size = struct.unpack("<Q", data[:8])[0]
  header = hf_folder / f"{path.name}.header"
  header.write_bytes(data[8 : 8 + size])

  def read(where):
    text = header.read_bytes()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    opens(hf_folder)(where)

  walked = walk(header, read, also=safetensors.INDEX)
  walked.file = SimpleNamespace(
    name=path.name, read_bytes=header.read_bytes, write_bytes=header.write_bytes
  )
  walked().check()


def test_a_coco_file(walk, tmp_path):
  segmentation = [[1, 1, 9, 1, 9, 9]]
  content = dict(
    images=[dict(id=1, file_name="a.png", width=20, height=10)],
    annotations=[
      dict(id=5, image_id=1, category_id=2, bbox=[1, 2, 3, 4], area=12.0, iscrowd=0)
      | dict(segmentation=segmentation)
    ],
    categories=[dict(id=2, name="cat", supercategory="animal")],
  )
  file = tmp_path / "train.json"
  file.write_text(json.dumps(content))

  def read(_):
    example = registry.open(dict(name="coco", fname=str(file)), check_images=False).texts(0)
    for each in example["segmentations"]:
      try:
        masks.from_coco(each, 10, 20) if each else None
      except UserError as error:  # The loader names the example, as here.
        raise UserError(f"{file}: segmentations: {error}") from None

  walk(file, read)().check()


def test_a_line_of_a_jsonl_file(walk, tmp_path):
  file = tmp_path / "train.jsonl"
  row = dict(image="a.png", prefix="detect", suffix="yes", id=3, boxes=[[0.1, 0.1, 0.5, 0.5]])
  file.write_text("\n".join(json.dumps(row | dict(labels=["cat"])) for _ in range(2)))

  def read(_):
    opened = registry.open(dict(name="jsonl", fname=str(file)), check_images=False)
    layout = loader_lib.Layout(32, 16, 0, for_training=True)
    part = loader_lib.Part("train", opened, 1.0)
    loader = loader_lib.Loader(part, "decode", tokenizer.load("tiny"), layout, 0)
    loader.num_tokens(len(opened) - 1)

  walk(file, read, entry=1)().check()
  file.write_text('{"image": "a.png"}\n{"image": 3}')
  with pytest.raises(UserError, match=r"train\.jsonl, line 2"):
    read(())


def test_questions_of_chartqa(walk, tmp_path):
  folder = tmp_path / "train"
  (folder / "png").mkdir(parents=True)
  (folder / "png/a.png").write_bytes(b"")
  file = folder / "train_human.json"
  file.write_text(json.dumps([dict(imgname="a.png", query="q", label="l")]))
  walk(file, lambda _: list(chartqa._rows(base.Raw(tmp_path), "human", "train")))().check()  # noqa: SLF001


def test_a_json_schema(walk, tmp_path, monkeypatch):
  monkeypatch.setattr(json_grammar, "DEPTH", 1)  # Of what has no shape: makes small automata.
  file = tmp_path / "receipt.json"
  inner = dict(type="array", items=dict(type="string"), minItems=1, maxItems=2)
  properties = dict(a=inner, b=dict(enum=["x", 1]), c=dict(anyOf=[dict(type="null")]))
  file.write_text(json.dumps(dict(type="object", properties=properties, required=["a"])))
  walk(file, lambda _: grammar.parse(f'json(schema="{file}")'))().check()


def test_a_damaged_watcher_is_ignored(walk, tmp_path):
  watchers.announce(tmp_path, tmp_path / "out", [1, 2])
  [file] = (tmp_path / watchers.FOLDER).iterdir()
  walk(file, lambda _: watchers.warning(tmp_path, range(30)), quiet=True)().check()


def test_damaged_metrics_of_a_scored_step_are_ignored(walk, tmp_path):
  args = SimpleNamespace(evals=".*", ema=True, quantize=None, config_spec=None, overrides={})
  metrics = {"val/acc": float("nan"), "about": dict(flags=score_checkpoint.result_flags(args))}
  file = tmp_path / "metrics.json"
  file.write_text(json.dumps(metrics))
  assert evaluate.is_scored(tmp_path, args)  # NaN is a score, too.
  walk(file, lambda _: evaluate.is_scored(tmp_path, args), quiet=True)().check()


@pytest.mark.parametrize("entry", [0, 1])
def test_damaged_rows_of_metrics_are_ignored(walk, tmp_path, entry):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"step": 1, "training_loss": NaN}\n{"step": 2, "val/acc": 0.5}\n')
  lines = file.read_bytes()

  def read(_):
    now = file.read_bytes()
    run_log.truncate_after(file, 2, evaluated=True)
    before = file.read_bytes().splitlines()
    assert set(before) <= set(now.splitlines())
    assert lines.splitlines()[1 - entry] in before

  walk(file, read, quiet=True, entry=entry)().check()
  assert file.read_bytes() == lines


@pytest.mark.parametrize("entry", [0, 1])
def test_batches_of_an_unfinished_evaluation_are_scored_again(walk, tmp_path, entry):
  row = dict(id=1, prompt="p", prediction="a", logp=-1.5, nll=float("nan"))
  row |= dict(scores=dict(acc=[1.0, 1]), _sha256="ab")
  for opened in (journal.Journal(tmp_path, "val", dict(a=1)),):
    opened.add([row])
    opened.close(finished=False)
  [file] = (tmp_path / journal.FOLDER).iterdir()

  def read(_):
    again = journal.Journal(tmp_path, "val", dict(a=1))
    again.close(finished=False)
    for batch in again.batches:
      for each in batch:
        assert {name: float(total) / n for name, (total, n) in each["scores"].items() if n} != 1
        assert each["_sha256"] + each["prompt"] + each.get("prediction", "")

  walk(file, read, quiet=True, entry=entry)().check()


def test_a_compiled_step_in_the_cache_is_compiled_again(walk, tmp_path, monkeypatch):
  need = memory.Need(*range(9))
  step = compiler_lib.Step(
    "cpu", dict(data=2), need, 1.0, 2.0, [hlo.Collective("a", "d", 1, 2, 3)], 4.0
  )
  file = tmp_path / "key.json"
  line = msgspec.json.encode(step).decode()
  file.write_text(line)
  monkeypatch.setattr(compiler_lib, "_cache_file", lambda case: file)
  monkeypatch.setattr(compiler_lib.Compiler, "__init__", lambda self: None)
  compiler = compiler_lib.Compiler()
  out = SimpleNamespace(readline=lambda: line + "\n")
  talk = SimpleNamespace(write=len, flush=lambda: None)
  vars(compiler).update(_gpu=None, _process=SimpleNamespace(stdin=talk, stdout=out))
  config = SimpleNamespace(to_dict=dict, remat="balanced")

  def read(_):
    plan = compiler.step(config, 1)
    assert isinstance(plan.need.trained, int)
    assert plan.need.step + plan.seconds >= 0
    assert all(c.bytes + c.count >= 0 for c in plan.collectives)

  walk(file, read, quiet=True)().check()


# A damaged newest checkpoint.


def checksums(arrays):
  return {name: checksums_lib.checksum([np.asarray(a)]) for name, a in arrays.items()}


def state_at(number):
  from tests.checkpoints.test_saver import make_state

  return make_state(number)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  """A workdir with the steps 3 and 7, whose arrays are read from the disk only once."""
  workdir, lines = disk.open_folder(str(tmp_path / "w"), "--workdir"), []
  state = state_at(0)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )

  def make():
    return saver_lib.Saver(
      workdir,
      plan=saver_lib.Plan(100),
      config=dict(lr=0.1, mesh=[["data", -1]]),
      tokenizer=b"pieces",
      identity=dict(seed=0, data=dict(name="easy_vqa")),
      checksums=checksums,
      say=lines.append,
    )

  saver = make()
  saver.latest(abstract)
  for number in (3, 7):
    where = dict(step=number, total_steps=100, evaluated=True, seed=0, examples=4)
    saver.save(number, state_at(number), where, {})
  saver.close()
  read_item = orbax_items.read_item
  read = functools.lru_cache(lambda path: read_item(path, wanted[path.name]))
  wanted = {}

  def read_once(path, like):
    wanted[path.name] = like
    return read(path)

  monkeypatch.setattr(orbax_items, "read_item", read_once)
  monkeypatch.setattr(saver_lib.Saver, "_open_manager", lambda self: None)
  return workdir, lambda: make().latest(abstract), lines


@pytest.mark.parametrize("name", ["run.json", "files.json"])
def test_a_run_goes_back_from_a_damaged_newest_step(workdir, name, values):
  workdir, latest, lines = workdir
  newest = workdir / "checkpoints/7"
  whole, back, traces = (newest / name).read_bytes(), 0, []
  cases = [(path, json.dumps(bad).encode()) for path, bad in damaged(json.loads(whole), values)]
  for path, text in [*cases, *(((), text) for text in TEXTS), ((), whole[: len(whole) // 2])]:
    (newest / name).write_bytes(text)
    sizes = json.loads((newest / "files.json").read_bytes()) if name == "run.json" else None
    if sizes:  # The size is right: only the content is wrong.
      sizes["run.json"] = len(text)
      (newest / "files.json").write_text(json.dumps(sizes))
    lines.clear()
    try:
      state, _ = latest()
      assert int(state.step) in (3, 7), (path, text[:60])
      if int(state.step) == 3:
        back += 1
        assert "step 7 is damaged" in lines[0], lines
        assert "goes back to step 3" in lines[0], lines
      else:  # The field had this value before.
        assert json.loads(text) == json.loads(whole), (path, text[:60])
    except UserError as error:  # A version of the file that this one does not read.
      if path != ("format",) or "has format" not in str(error):
        traces.append((path, text[:60], error))
    except Exception as error:
      traces.append((path, text[:60], error))
    workdir_lib.scores_of(newest if newest.exists() else workdir / workdir_lib.DAMAGED / "7")
    if not newest.exists():
      (workdir / workdir_lib.DAMAGED / "7").rename(newest)
    (newest / name).write_bytes(whole)
  assert not traces, f"{len(traces)}: {traces[:5]}"
  assert back > len(cases) / 2


# Files of weights.


def damaged_files(data):
  """{how: bytes}."""
  return {
    "half": data[: len(data) // 2],
    "all but a byte": data[:-1],
    "empty": b"",
    "zeros": bytes(len(data)),
    "garbage": np.random.default_rng(0).bytes(len(data)),
    "another's first bytes": b"\x89PNG" + data[4:],
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
  }


def trace_of(read, names):
  """None, or what came instead of a sentence that has all of `names`."""
  try:
    with warnings.catch_warnings(action="ignore"):  # numpy's, about what it mends by itself.
      read(())
  except UserError as error:
    missing = [name for name in names if name not in str(error)]
    return f"{missing} not in {error}" if missing or "\n" in str(error) else None
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  return "no error"


def npy(header, data, version=(1, 0)):
  text = header.encode("latin1").ljust(118) + b"\n"
  return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + data


def with_member(path, name, content, **info):
  """The same .npz with another member of that name."""
  with zipfile.ZipFile(path) as file:
    members = {i.filename: file.read(i) for i in file.infolist()}
  with zipfile.ZipFile(path, "w") as file:
    for member, data in (members | {name: content}).items():
      file.writestr(member, data)


MEMBER = "params/img/head/bias.npy"
HEADERS = {
  "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4), }",
  "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000000,), }",
  "not a tuple": "{'descr': '<f4', 'fortran_order': False, 'shape': 16, }",
  "floats": "{'descr': '<f4', 'fortran_order': False, 'shape': (16.0,), }",
  "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (8,), }",
  "no dtype": "{'descr': 'spam', 'fortran_order': False, 'shape': (16,), }",
  "a dtype of lists": "{'descr': [['a']], 'fortran_order': False, 'shape': (16,), }",
  "no keys": "{}",
  "a list": "[1, 2]",
  "no literal": "__import__('os').system('true')",
  "brackets": "(" * 100,
  "half a text": "{'descr': '<f4",
  "indented": "  {'descr'\n    \n  : 3L}",
  "scalar": "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
  "null bytes": "{'descr': '<f4\\x00', 'fortran_order': False, 'shape': (16,), }\x00",
  "no bytes": "{'descr': 'S0', 'fortran_order': False, 'shape': (1000000000000,), }",
}


def test_damaged_npz(npz, tmp_path):
  npz.with_name("x.npz.pgjax.json").unlink()
  whole, wrong = npz.read_bytes(), {}
  for how, data in damaged_files(whole).items():
    npz.write_bytes(data)
    wrong[how] = trace_of(opens(npz), ["x.npz"])
  for how, header in HEADERS.items():
    npz.write_bytes(whole)
    with_member(npz, MEMBER, npy(header, bytes(64)))
    wrong[how] = trace_of(opens(npz), ["x.npz"])
  for how, content in dict(
    empty=b"", magic=b"\x93NUMPX" + bytes(80), short=npy("{}", b"")[:20]
  ).items():
    npz.write_bytes(whole)
    with_member(npz, MEMBER, content)
    wrong[f"member: {how}"] = trace_of(opens(npz), ["x.npz"])
  for how, at, new in (("encrypted", 6, b"\1\0"), ("packed in no known way", 8, b"\x63\0")):
    # In the entry of each member in the directory at the end, and in front of it.
    data = bytearray(whole)
    for mark, more in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
      start = data.find(mark)
      while start >= 0:
        data[start + at + more : start + at + more + 2] = new
        start = data.find(mark, start + 4)
    npz.write_bytes(bytes(data))
    wrong[how] = trace_of(opens(npz), ["x.npz"])
  npz.unlink()
  npz.mkdir()
  wrong["a folder"] = trace_of(opens(npz), ["x.npz"])
  bad = {how: message for how, message in wrong.items() if message}
  assert not bad, f"{len(bad)} of {len(wrong)}: {bad}"


def test_an_npz_that_announces_more_than_it_has_allocates_nothing(npz, monkeypatch):
  """A directory that claims 2^40 bytes of a file of some thousand."""
  data = bytearray(npz.read_bytes())
  for i in range(len(data) - 4):
    if data[i : i + 4] == b"PK\1\2":
      data[i + 20 : i + 28] = struct.pack("<II", 2**31, 2**31)
  npz.write_bytes(bytes(data))
  monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("allocated"))
  assert trace_of(opens(npz), ["x.npz"]) is None


def test_damaged_safetensors(hf_folder):
  path = sorted(hf_folder.glob("*.safetensors"))[0]
  whole, wrong = path.read_bytes(), {}
  size = struct.unpack("<Q", whole[:8])[0]
  header = json.loads(whole[8 : 8 + size])
  first, second = [name for name in header if name != "__metadata__"][:2]
  begin, end = header[first]["data_offsets"]
  cases = damaged_files(whole) | {
    "a long header": struct.pack("<Q", 2**63) + whole[8:],
    "a header as long as the file": struct.pack("<Q", len(whole)) + whole[8:],
    "a header that is a list": struct.pack("<Q", 2) + b"[]" + whole[8 + size :],
  }
  changes = {
    "overlap": (
      second,
      dict(data_offsets=[begin, begin + header[second]["data_offsets"][1] - end]),
    ),
    "outside": (first, dict(data_offsets=[2**40, 2**40 + end - begin])),
    "backwards": (first, dict(data_offsets=[end, begin])),
    "an unknown dtype": (first, dict(dtype="Q4")),
    "a huge shape": (first, dict(shape=[2**60])),
    "an overflowing shape": (first, dict(shape=[2**32, 2**32])),
    "a negative shape": (first, dict(shape=[-1, -8])),
    "other bytes": (first, dict(shape=[3])),
  }
  for how, (name, fields) in changes.items():
    text = json.dumps(header | {name: header[name] | fields}).encode()
    cases[how] = struct.pack("<Q", len(text)) + text + whole[8 + size :]
  for how, data in cases.items():
    path.write_bytes(data)
    wrong[how] = trace_of(opens(hf_folder), [path.name])
  path.unlink()
  path.mkdir()
  wrong["a folder"] = trace_of(opens(hf_folder), [path.name])
  bad = {how: message for how, message in wrong.items() if message}
  assert not bad, f"{len(bad)} of {len(wrong)}: {bad}"


def test_damaged_tokenizers():
  """Where a model is cut, what is left may be a whole model of fewer pieces."""
  whole, wrong = tokenizer.TINY.read_bytes(), {}
  cases = damaged_files(whole) | {f"cut at {n}": whole[:n] for n in range(1, len(whole), 397)}
  rng = np.random.default_rng(0)
  for i in range(60):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    cases[f"a flipped bit {i}"] = bytes(data)
  for how, data in cases.items():
    message = trace_of(
      lambda _, data=data: tokenizer.Tokenizer(data, "a/tokenizer.model"), ["a/tok"]
    )
    wrong[how] = None if message == "no error" else message
  bad = {how: message for how, message in wrong.items() if message}
  assert not bad, f"{len(bad)} of {len(wrong)}: {bad}"


# Through the command line.


def status_and_words(*argv, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.run(convert.main, "doc", convert.FLAGS, config="none", argv=["convert", *argv])
  return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", safetensors.INDEX])
@pytest.mark.parametrize("text", ["[]", '{"model_type": "paligemma", "text_config": 3}', "{"])
def test_the_command_line_prints_one_line(hf_folder, tmp_path, capsys, name, text):
  (hf_folder / name).write_text(text)
  flags = (f"--src={hf_folder}", f"--dst={tmp_path / 'y.npz'}", "--to=bv")
  status, words = status_and_words(*flags, capsys=capsys)
  assert status == 1
  assert words.startswith("error: ")
  assert words.count("\n") == 1
  assert name in words
  assert "Traceback" not in words
