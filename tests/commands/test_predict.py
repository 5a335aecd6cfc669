"""One question or many, of a run or of bare weights: the answers of pgjax.evaluate, and sentences.

The checkpoints have random weights: what they say is rubbish, and the same rubbish each time.
"""

import importlib.util
import json
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from pgjax import cli, convert, errors, evaluate, predict
from pgjax.checkpoints import run_lock
from pgjax.data import prompt_order, tokenizer
from pgjax.data.sources import memory, registry
from pgjax.inference import decoder_cache, engine
from pgjax.params import tree as param_tree
from tests import small_checkpoint

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("easy_vqa") is None, reason="the easy-vqa package is not installed"
)


def run(module, *argv):
  """The exit code of a command in this process."""
  with pytest.raises(SystemExit) as end:
    cli.run(
      module.main, module.__doc__, module.FLAGS, config=module.CONFIG, argv=[module.__file__, *argv]
    )
  return end.value.code or 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, root):
  return small_checkpoint.write(tmp_path_factory.mktemp("predict") / "full", root)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
  """(folder, questions of the test split with their images as files, the JSONL that lists them)."""
  folder = tmp_path_factory.mktemp("asked")
  source = registry.open(dict(name="easy_vqa", split="test[:20]"))
  rows = []
  for i in range(20):
    example = source[i]
    (folder / f"{i}.png").write_bytes(example["image"])
    rows.append(dict(image=f"{i}.png", prefix=example["question"], id=example["id"]))
  (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder, rows, f"--jsonl={folder / 'in.jsonl'}"


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_the_evaluation(checkpoint, asked, tmp_path):
  assert run(evaluate, f"--ckpt={checkpoint}", "--evals=test", f"--out={tmp_path}") == 0
  flags = [f"--ckpt={checkpoint}", asked[2], f"--out={tmp_path}/a.jsonl", "--max_decode_len=4"]
  assert run(predict, *flags) == 0
  evaluated, predicted = read(tmp_path / "predictions.jsonl"), read(tmp_path / "a.jsonl")
  assert len({row["prediction"] for row in predicted}) > 5
  same = [{name: row[name] for name in ("id", "prompt", "prediction")} for row in evaluated]
  assert [{name: row[name] for name in same[0]} for row in predicted] == same
  logps = ([row["logp"] for row in rows] for rows in (evaluated, predicted))
  np.testing.assert_allclose(*logps, atol=1e-5)


@pytest.mark.slow
def test_answers_of_sorted_batches_are_those_of_the_order_of_the_split(
  checkpoint, asked, tmp_path, monkeypatch
):
  """Three batches of 8, of two text lengths; samples have the same seeds."""
  length = "--max_decode_len=4"
  flags = {
    "evaluated": (evaluate, "--evals=test", "--config.evals.test.batch_size=8"),
    "predicted": (predict, asked[2], length, "--batch_size=8"),
    "sampled": (predict, asked[2], length, "--batch_size=8", "--decode=temperature(1.0)"),
  }
  shapes, rows, trimmed = set(), {}, prompt_order.Order.trimmed

  def noted(order, arrays, batch):
    shapes.add(order.text_lens is not None and order.text_lens[batch])
    return trimmed(order, arrays, batch)

  monkeypatch.setattr(prompt_order.Order, "trimmed", noted)
  for way in ("plain", "sorted"):
    if way == "sorted":
      assert shapes == {False}
      for name, value in dict(MULTIPLE=1, MIN_SAVED=0.1, MIN_BATCHES=3).items():
        monkeypatch.setattr(prompt_order, name, value)
    for name, (command, *more) in flags.items():
      out = tmp_path / f"{name} {way}"
      file = out if command is evaluate else out.with_suffix(".jsonl")
      assert run(command, f"--ckpt={checkpoint}", f"--out={file}", *more) == 0
      rows[name, way] = read(out / "predictions.jsonl" if command is evaluate else file)
  assert len(shapes) == 3
  for name in flags:
    logps = [[row.pop("logp") for row in rows[name, way]] for way in ("plain", "sorted")]
    np.testing.assert_allclose(*logps, atol=1e-4)
    assert rows[name, "plain"] == rows[name, "sorted"]


@pytest.mark.long
def test_answers_do_not_depend_on_the_mesh(checkpoint, asked, tmp_path):
  """Four copies of the one key/value head under tensor=4; a last batch that is not full."""
  flags = [f"--ckpt={checkpoint}", asked[2], "--max_decode_len=4", "--decode=beam(3)"]
  meshes = {"own": [], "tensor": ["--mesh=[('data', 2), ('tensor', 4)]"], "name": ["--mesh=hsdp"]}
  answers = {}
  for name, mesh in meshes.items():
    assert run(predict, *flags, *mesh, f"--out={tmp_path}/{name}.jsonl", "--batch_size=16") == 0
    rows = read(tmp_path / f"{name}.jsonl")
    answers[name] = [row["prediction"] for row in rows], [row["logp"] for row in rows]
  for name in ("tensor", "name"):
    assert answers[name][0] == answers["own"][0]
    np.testing.assert_allclose(answers[name][1], answers["own"][1], atol=1e-5)
  assert run(predict, *flags, "--mesh=tenser", f"--out={tmp_path}/x.jsonl") == 1


@pytest.mark.slow
def test_a_second_evaluation_in_one_folder_is_refused(checkpoint, tmp_path, capsys):
  first = run_lock.RunLock(tmp_path, print, run_lock.EVALUATION)
  first.acquire()
  assert run(evaluate, f"--ckpt={checkpoint}", f"--out={tmp_path}") == 1
  first.release()
  output = capsys.readouterr()
  assert f"{tmp_path} is in use by another evaluation on host" in output.err
  assert "Loading" not in output.out
  assert not list(tmp_path.iterdir())


def test_many_questions_get_the_answers_of_each_one(checkpoint, asked):
  """A sample depends on what is asked and the seed, not on its place among the questions."""
  folder, rows, _ = asked
  source = registry.open(dict(name="jsonl", fname=str(folder / "in.jsonl")))
  opened = engine.open_checkpoint(checkpoint)
  answerer = engine.Engine(opened)
  for method in ("greedy", "nucleus(0.9)"):
    settings = opened.settings._replace(decode=method)
    together = list(answerer.answers(engine.loader(opened, source), settings, 8))
    assert [answer.prompt for answer in together] == [row["prefix"] for row in rows]
    for i in (0, 17):
      single = question(opened, (folder / f"{i}.png").read_bytes(), rows[i]["prefix"])
      [answer] = answerer.answers(single, settings, 8)
      assert answer.tokens == together[i].tokens
  [other] = answerer.answers(single, settings._replace(seed=1), 8)
  assert other.tokens != answer.tokens


def test_only_the_answer_goes_to_stdout(checkpoint, asked, capsys):
  image = f"--image={asked[0]}/0.png"
  assert run(predict, f"--ckpt={checkpoint}", image, "--prompt=a", "--grammar=one_of('yes')") == 0
  out = capsys.readouterr()
  assert out.out == "yes\n"
  assert "Loading" in out.err


def test_control_characters_of_an_answer_do_not_reach_the_terminal(
  checkpoint, asked, capsys, monkeypatch
):
  odd = "\x1b[31mred\x07 a\x9b2Jb \u202egnp.exe a\rb\x00"
  decode = tokenizer.Tokenizer.decode
  monkeypatch.setattr(tokenizer.Tokenizer, "decode", lambda *a: decode(*a)[:0] + odd + " \u00e9\n!")
  assert run(predict, f"--ckpt={checkpoint}", f"--image={asked[0]}/0.png", "--prompt=a") == 0
  assert capsys.readouterr().out == errors.printable(odd) + " \u00e9\n!\n"
  assert run(predict, f"--ckpt={checkpoint}", asked[2], "--batch_size=20") == 0
  out = capsys.readouterr().out
  assert all(c.isprintable() or c == "\n" for c in out)
  assert {json.loads(line)["prediction"] for line in out.splitlines()} == {odd + " \u00e9\n!"}


def test_printable_keeps_text_and_escapes_what_a_terminal_obeys():
  assert errors.printable("caf\u00e9 \u732b\n\t\u05d0") == "caf\u00e9 \u732b\n\t\u05d0"
  assert errors.printable("\x1b]0;t\x07\x9b\u2066\x7f") == r"\x1b]0;t\x07\x9b\u2066\x7f"


def test_json_has_tokens_boxes_in_pixels_and_how_it_was_decoded(checkpoint, tmp_path, capsys):
  Image.new("RGB", (200, 100), (9, 99, 199)).save(tmp_path / "a.png")
  flags = [f"--ckpt={checkpoint}", f"--image={tmp_path}/a.png", "--prompt=detect cat"]
  flags += ["--grammar=boxes", "--max_decode_len=12", "--json", f"--draw={tmp_path}/out.png"]
  assert run(predict, *flags) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["settings"] == dict(decode="greedy", max_decode_len=12, grammar="boxes", seed=0)
  assert (result["image_size"], result["step"], result["ended"]) == ([200, 100], 7, True)
  assert result["tokens"][-1]["piece"] == "<eos>"
  assert result["logp"] == pytest.approx(sum(token["logp"] for token in result["tokens"]))
  locs = [int(t["piece"][4:8]) for t in result["tokens"] if t["piece"].startswith("<loc")]
  y0, x0, y1, x1 = locs[:4]
  drawn = Image.open(tmp_path / "out.png")
  assert drawn.width == 800
  assert drawn.height > 400  # The answer is below the image.
  if y0 < y1 and x0 < x1:
    [first, *_] = result["objects"]
    assert first["label"] == "cat"
    assert first["box"] == pytest.approx(
      [x0 / 1023 * 200, y0 / 1023 * 100, x1 / 1023 * 200, y1 / 1023 * 100], abs=0.01
    )
  assert len(result["objects"]) + result["malformed"] == len(locs) // 4 > 0


def huge_png(width, height):
  """The header of a picture whose pixels nobody should make."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (["--image=none.png"], "--image=none.png: none.png cannot be read: No such file or directory"),
    (["--image=note.txt"], "--image=note.txt: the image cannot be decoded (cannot identify"),
    (["--image=huge.png"], "the image declares 200,000,000 pixels, more than the 89,478"),
    (["--image=a.png", "--prompt=" + "long " * 20], "the prompt has 63 tokens, with <bos>"),
    (["--image=a.png", "--image=a.png"], "there are 2 images, and this checkpoint takes 1"),
    (["--image=a.png", "--step=8"], "--step=8 cannot be chosen there"),
    (["--image=a.png", "--decode=fast"], "--decode: there is no 'fast'"),
    (["--image=a.png", "--grammar=boxes"], "give labels=[...] otherwise"),
    (["--image=a.png", "--quantize=int2"], "--quantize=int2 must be one of nf4, int8."),
    (["--image=a.png", "--max_decode_len=-1"], "--max_decode_len=-1 must be at least 1."),
    (["--image=a.png", "--draw=a.pdf"], "--draw=a.pdf must end in one of .png"),
    (["--image=a.png", "--out=b.jsonl"], "--out is for the answers to --jsonl"),
    (["--image=a.png", "--jsonl=in.jsonl"], "Give either --image and --prompt, or --jsonl"),
    ([], "Give either --image and --prompt, or --jsonl"),
    (["--jsonl=bad.jsonl", "--prompt="], "--draw and --prompt are for one --image"),
  ],
)
def test_mistakes_raise_before_weights_are_read(
  checkpoint, tmp_path, monkeypatch, capsys, flags, sentence
):
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (8, 8)).save("a.png")
  (tmp_path / "note.txt").write_text("no picture")
  (tmp_path / "huge.png").write_bytes(huge_png(20_000, 10_000))
  monkeypatch.setattr(engine.Engine, "__init__", lambda *_: pytest.fail("weights are read"))
  prompt = [] if any(f.startswith(("--prompt", "--jsonl")) for f in flags) else ["--prompt=what?"]
  assert run(predict, f"--ckpt={checkpoint}", *prompt, *flags) == 1
  error = capsys.readouterr().err
  assert sentence in error
  assert "Traceback" not in error


def test_a_mistake_in_a_jsonl_names_the_line(checkpoint, tmp_path, monkeypatch, capsys):
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  (tmp_path / "b.png").write_bytes(b"\x89PNG nothing more")
  rows = [dict(image="a.png", prefix="a"), dict(image="b.png", prefix="b")]
  (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
  monkeypatch.setattr(engine.Engine, "__init__", lambda *_: pytest.fail("weights are read"))
  assert run(predict, f"--ckpt={checkpoint}", f"--jsonl={tmp_path}/in.jsonl") == 1
  assert "in.jsonl, line 3 (image b.png): the image cannot be decoded" in capsys.readouterr().err


def test_answers_to_a_file_appear_when_all_are_there(tmp_path, monkeypatch):
  """Those before an error are not lost."""
  out = tmp_path / "answers.jsonl"
  predict.write(out, iter(["1", "2"]))
  assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("answers.jsonl", "1\n2\n")]

  def fails(error):
    yield "3"
    raise error

  raised = errors.UserError("The image of line 2 is gone."), OSError(28, "No space left on device")
  for error, sentence in zip(raised, ("is gone", r"\(No space left on device\)"), strict=True):
    with pytest.raises(
      errors.UserError, match=rf"{sentence}.*he answers so far are in .*\.partial\.$"
    ):
      predict.write(out, fails(error))
    assert (tmp_path / "answers.jsonl.partial").read_text() == "3\n"
    assert (tmp_path / "answers.jsonl").read_text() == "1\n2\n"


def question(opened, image, prompt="what is it?"):
  return engine.loader(opened, memory.InMemory([dict(image=image, prefix=prompt)], ["it"]))


def png(tmp_path, colour, name="x.png"):
  Image.new("RGB", (48, 48), colour).save(tmp_path / name)
  return (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_frames_are_one_question_in_their_order(tmp_path, root):
  folder = small_checkpoint.write(tmp_path / "frames", root, num_frames=3)
  opened = engine.open_checkpoint(folder)
  answerer = engine.Engine(opened)
  a, b = png(tmp_path, (255, 0, 0)), png(tmp_path, (0, 0, 255))
  logps = []
  for image in ([a], [a, b], [b, a], [a, b, b]):
    [answer] = answerer.answers(question(opened, image), opened.settings, 1)
    logps.append(sum(answer.logp))
  assert len({round(p, 4) for p in logps}) == 4


@pytest.mark.slow
def test_quantized_weights_answer_nearly_the_same(checkpoint, asked, tmp_path):
  encoded = (asked[0] / "0.png").read_bytes()
  logp, kinds = {}, {}
  for how in (None, "int8", "nf4"):
    opened = engine.open_checkpoint(checkpoint, quantize=how)
    answerer = engine.Engine(opened)
    settings = opened.settings._replace(grammar="one_of('yes')")
    [answer] = answerer.answers(question(opened, encoded), settings, 1)
    logp[how] = sum(answer.logp)
    kinds[how] = {name.split("/")[-1] for name in param_tree.flatten(answerer.params)}
  assert {"int8"} <= kinds["int8"]
  assert {"nf4"} <= kinds["nf4"]
  assert not {"int8", "nf4"} & kinds[None]
  assert 0 < abs(logp["int8"] - logp[None]) < abs(logp["nf4"] - logp[None]) < 1


@pytest.mark.slow
def test_adapters_are_applied_to_a_base_stored_unchanged(tmp_path, root, asked):
  """Loaded as they are, the weights have the checkpoint's own bits: nothing is rounded twice."""
  rules = [("llm/layers/(attn|mlp)/.*", "lora(rank=2, alpha=6, rslora=True)"), (".*", "freeze")]
  folder = small_checkpoint.write(tmp_path / "lora", root, params=rules)
  assert run(evaluate, f"--ckpt={folder}", "--evals=test", f"--out={tmp_path}") == 0
  assert (
    run(predict, f"--ckpt={folder}", asked[2], f"--out={tmp_path}/a.jsonl", "--max_decode_len=4")
    == 0
  )
  both = [read(tmp_path / name) for name in ("predictions.jsonl", "a.jsonl")]
  np.testing.assert_allclose(*([row["logp"] for row in rows] for rows in both), atol=1e-5)
  opened = engine.open_checkpoint(folder, quantize="nf4")
  stored = param_tree.flatten(engine.Engine(opened).params)
  assert "lora/llm/layers/mlp/linear/a" in stored
  assert "llm/layers/mlp/linear/nf4" in stored


@pytest.mark.slow
def test_bare_weights_report_the_image_ops_and_answer_the_same(checkpoint, asked, tmp_path, capsys):
  flags = [f"--src={checkpoint}", f"--dst={tmp_path}/hf", "--to=hf"]
  assert run(convert, *flags) == 0
  folder, rows, _ = asked
  one = [f"--image={folder / '3.png'}", f"--prompt={rows[3]['prefix']}", "--max_decode_len=4"]
  answers = []
  for name in (checkpoint, f"{tmp_path}/hf"):
    capsys.readouterr()
    assert run(predict, f"--ckpt={name}", *one) == 0
    out = capsys.readouterr()
    answers.append(out.out)
  assert answers[0] == answers[1]
  assert (
    "preprocessor_config.json says: decode(precise=True)|resize(48, antialias=True)|value"
    in out.err
  )
  (tmp_path / "hf/preprocessor_config.json").unlink()
  assert run(predict, f"--ckpt={tmp_path}/hf", *one) == 0
  out = capsys.readouterr()
  assert out.out == answers[0]
  assert "does not say how images are resized" in out.err
  assert "decode|resize(48, antialias=True)|value_range(-1, 1)" in out.err


def test_compiled_programs_are_reused(checkpoint, tmp_path):
  opened = engine.open_checkpoint(checkpoint)
  answerer = engine.Engine(opened)
  encoded = png(tmp_path, (1, 2, 3))
  list(answerer.answers(question(opened, encoded), opened.settings, 1))
  with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      decoder_cache.decode_lib, "jitted", lambda *_, **__: pytest.fail("compiled again")
    )
    list(answerer.answers(question(opened, encoded, "another"), opened.settings, 1))
