"""Texts that nobody thought of, for every option that has a syntax of its own.

Whatever a text is, reading it ends within a second, and gives a value or a UserError. Each language
is tried for PGJAX_FUZZ_SECONDS (2 if that is not set; what is tried depends on nothing else, and
longer runs begin with the same texts):

  PGJAX_FUZZ_SECONDS=60 pytest -m slow tests/test_fuzz.py
"""

import os
import pathlib
import time
import typing

import numpy as np
import pytest
import test_call_syntax
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from pgjax import call_syntax
from pgjax.config import durations, load as config_load, validate as config_validate
from pgjax.data.pp import parse as parse_lib
from pgjax.data.sources import easy_vqa
from pgjax.errors import UserError
from pgjax.params import names as param_names, tree as param_tree

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::SyntaxWarning")]
SECONDS = float(os.environ.get("PGJAX_FUZZ_SECONDS", "2"))
ROOT = pathlib.Path(__file__).resolve().parents[1]
NASTY = [
  *("1e400", "-1e400", "1e-320", "1e308", "0", "-1", "10**9", "2147483648", "nan", "None", "True"),
  *("0x" + "f" * 5000, "9" * 5000, "1" * 300, "1j", "b''", "'\\ud800'", "\ud800", "\0", "\n", "\\"),
  *("(" * 30, "[" * 19 + "]" * 19, "-" * 50_000 + "1", "not " * 9000 + "1", "1+" * 20_000 + "1"),
  *("'" * 9, '"', "*x", "**x", "a=1, a=1", "lambda: 0", "f'{x}'", "__import__('os')", "#", "|"),
  *("()", "{}", "...", "'x' * 9", "'" + "x" * 99_000 + "'", "'/dev/zero'", "/dev/zero"),
]
noise = st.one_of(st.text(max_size=30), st.sampled_from(NASTY))
scalars = st.one_of(
  st.integers(-(2**70), 2**70), st.integers(-9, 300), st.floats(), st.text(max_size=20),
  st.booleans(), st.none(), st.binary(max_size=3), st.complex_numbers(),
)  # fmt: skip
values = st.recursive(
  scalars,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=8,
)
literals = st.one_of(values.map(repr), noise)


def argument(kind):
  """Mostly what a parameter takes, often at the end of its range."""
  near = []
  for member in test_call_syntax.alternatives(kind):
    near.append(st.just(test_call_syntax.right(member)))
    args = typing.get_args(member)
    if typing.get_origin(member) is typing.Literal:
      near.append(st.sampled_from(args).map(repr))
    elif typing.get_origin(member) is typing.Annotated:
      low, high, _ = args[1]
      if args[0] is int:
        near.append(st.integers(low, high).map(repr))
      elif args[0] is float:
        near.append(st.floats(low, high).map(repr))
    elif typing.get_origin(member) is tuple:
      near.append(st.tuples(*map(argument, args)).map(lambda texts: f"({', '.join(texts)})"))
  return st.one_of(*near, *near, literals)


@st.composite
def calls(draw, language):
  """A call of the language, right in most of its arguments."""
  name = draw(st.sampled_from([*language]))
  written = []
  for n, p in call_syntax.parameters(language[name]).items():
    if p.default is p.empty or draw(st.booleans()):
      text = draw(argument(p.annotation))
      written.append(text if p.kind is p.VAR_POSITIONAL else f"{n}={text}")
  if draw(st.integers(0, 9)) == 0:
    written.append(draw(literals))
  return f"{name}({', '.join(written)})" if written or draw(st.booleans()) else name


def texts(language):
  """Chains of calls, some with a piece cut out or put in."""
  chain = st.lists(calls(language) | st.sampled_from([*language]), min_size=1, max_size=3)
  chain = chain.map("|".join)
  return st.one_of(chain, chain, spoiled(chain), noise)


@st.composite
def spoiled(draw, good):
  text = draw(good)
  at = draw(st.integers(0, len(text)))
  return text[:at] + draw(noise) + text[at + draw(st.integers(0, 3)) :]


def fuzz(strategy, read, *, limit=1.0, longest=10**6):
  """Tries texts until the time is up; processor time counts, so that other work does not."""

  def measured(text):
    start = time.thread_time()
    said = ""
    try:
      read(text)
    except UserError as error:
      said = str(error)
    return time.thread_time() - start, said

  def once(text):
    took, said = measured(text)
    if took >= limit:  # A text that hangs does so again; a collection of garbage does not.
      took = measured(text)[0]
    assert took < limit, f"{took:.1f} s for {text!r:.300}"
    assert len(said) < longest

  run = settings(
    max_examples=100,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
  )
  end, number = time.monotonic() + SECONDS, 0
  while number < 1 or time.monotonic() < end:
    seed(number)(run(given(strategy)(once)))()
    number += 1


LANGUAGES = test_call_syntax.LANGUAGES


@pytest.mark.parametrize("where", [where for where in LANGUAGES if where != "pp"])
def test_calls(where):
  language, parse = LANGUAGES[where]
  fuzz(texts(language), parse, longest=2500)


def test_ops_and_what_they_make_of_an_image():
  image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)

  def apply(text):
    parsed = LANGUAGES["pp"][1](text)
    chosen = [op for op in parsed.ops if op.name in parse_lib.IMAGE_OPS]
    example = {"image": image, "x": image, "bbox": [0, 0.5, 1, 1], "_seed": (0, 1, 2, 3)}
    changed = parse_lib.Pipeline(tuple(chosen))(example)
    for name in ("image", "x"):
      assert np.isfinite(changed[name]).all(), name

  fuzz(texts(parse_lib.OPS), apply, limit=3.0)  # Of up to three ops.


words = st.sampled_from(
  ["res", "size", "batch_size", "variant", "tiny", "parts", "448", "3b", "tune", "lora", "="]
)


def test_arguments_of_a_config_file():
  parts = st.one_of(words, literals, st.tuples(words, literals | words).map("=".join))
  spec = st.lists(parts, max_size=4).map(",".join).map("configs/chartqa.py:{}".format)
  folder = spec | spoiled(spec) | noise

  def load(spec):
    config_validate.validated(
      config_load.load(str(ROOT / spec) if spec.startswith("configs/") else spec)
    )

  fuzz(folder, load, limit=2.0)


def test_overrides():
  c = config_load.load(str(ROOT / "configs/chartqa.py:variant=tiny,batch_size=8,parts=augmented"))
  flat = [name for name in param_tree.flatten(c.to_dict()) if "evals" not in name]
  names = st.sampled_from([name.replace("/", ".") for name in flat])
  names = st.one_of(names, names, spoiled(names))

  def override(pair):
    checked = config_validate.validated(config_load.overridden(c, dict([pair])))
    for prefix in ("total", "log_training", "ckpt"):
      durations.steps(checked, prefix, batch_size=8, num_examples=2**31, total_steps=1000)

  fuzz(st.tuples(names, literals | st.floats().map(repr)), override)


def test_durations():
  numbers = st.one_of(st.integers(0, 2**31 - 1), st.floats(0, 2**31 - 1), st.floats(0, 1))
  section = st.dictionaries(
    st.sampled_from([f"x_{u}" for u in durations.UNITS]), numbers, max_size=2
  )
  sizes = dict(batch_size=8, num_examples=2**31, total_steps=2**31)

  def steps(section):
    made = durations.steps(section, "x", **sizes)
    assert made is None or (isinstance(made, int) and made >= 0)

  fuzz(section, steps)


def test_patterns():
  marks = ["llm/", ".*", "(", ")", "[", "]", "{9}", "{99999999999}", "?", "\\", "(?<a>", "|", "\\1"]
  pattern = st.lists(st.sampled_from(marks), max_size=8).map("".join)
  repeated = st.tuples(pattern, st.integers(1, 9000)).map(lambda t: (t[0] * t[1])[:20_000])
  fuzz(pattern | spoiled(pattern) | repeated | noise, param_names.compile_pattern)


def test_a_part_of_a_split():
  ends = st.one_of(st.integers().map(str), st.integers(0, 100).map("{}%".format), noise)
  split = st.tuples(ends, ends).map(lambda pair: "train[{}:{}]".format(*pair))
  fuzz(split | spoiled(split) | noise, lambda text: easy_vqa.cut_split(text)[1](100))
