"""Each transfer of the papers is big_vision's config of that name with its published settings."""

import ast
import functools
import importlib
import inspect
import json
import pathlib
import re

import pytest

from configs import common, published
from pgjax.config import load as config_load, validate as config_validate
from pgjax.data import tokenizer
from pgjax.data.pp import parse
from pgjax.data.sources import registry
from pgjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPEC = ROOT.parent / "shared/spec"
needs_spec = pytest.mark.skipif(not SPEC.is_dir(), reason="needs ../shared/spec")
TRANSFERS = sorted(
  path.stem for path in (ROOT / "configs").glob("*.py") if "transfer.start" in path.read_text()
)
NOT_BIG_VISIONS = {"docci", "mmvp"}
KINDS = {"coco_caption": "caption"}
# Original: cycles through summaries by image, not by example; ours counts visits of an example.
OTHER_IDS = "copy(inkey='image/id', outkey='_id')"


@functools.cache
def config(name, arg=""):
  """As the file makes it, not yet checked."""
  return importlib.import_module(f"configs.{name}").get_config(arg)


@functools.cache
def spec(name):
  return json.loads((SPEC / name).read_text())


def originals():
  known = {t["name"]: t for t in spec("transfers.json")["transfers"]}
  return {name: known[name] for name in TRANSFERS if name in known}


def bound(name, args, kwargs):
  """An op with all its arguments by name; of an unknown op as they are written."""
  if name in parse.OPS:
    called = inspect.signature(parse.OPS[name]).bind(*args, **kwargs)
    called.apply_defaults()
    kwargs = dict(called.arguments)
    kwargs, args = kwargs | kwargs.pop("route", {}), ()
    kwargs.pop("tokenizer", None)
  return name, json.dumps([args, kwargs], sort_keys=True)  # In which tuples are lists.


def ops(pp):
  """The ops of our string, without the last one, which is keep; and what that keeps."""
  calls = [ast.parse(op.strip(), mode="eval").body for op in pp.split("|")]
  made = []
  for call in calls:
    name = call.func.id if isinstance(call, ast.Call) else call.id
    args = [ast.literal_eval(a) for a in getattr(call, "args", ())]
    kwargs = {k.arg: ast.literal_eval(k.value) for k in getattr(call, "keywords", ())}
    made.append((name, args, kwargs))
  assert made[-1][0] == "keep"
  return [bound(*op) for op in made[:-1]], set(made[-1][1])


def original_ops(listed, res, default_res):
  """The original's ops at another resolution."""
  text = json.dumps(listed)
  if res != default_res:
    text = re.sub(rf"\b{default_res}\b", str(res), text)
  written = [(op["op"], op.get("args", []), op.get("kwargs", {})) for op in json.loads(text)]
  return [
    bound(*op) for op in written if "_id" not in op[2].values() or op[2].get("inkey") == "_id"
  ]


def same_split(split):
  return split.replace(" ", "").replace("_000", "000").replace("_864", "864")


@needs_spec
def test_every_original_has_a_config_of_ours():
  names = {t["name"] for t in spec("transfers.json")["transfers"]}
  assert names - set(TRANSFERS) == {"forkme", "vertexai_l4"}
  assert set(TRANSFERS) - names == NOT_BIG_VISIONS
  assert all((ROOT / "configs" / f"{name}.py").exists() for name in names - {"vertexai_l4"})


@needs_spec
def test_settings_are_the_published_best_of_the_sweep():
  for name, original in originals().items():
    for best in original["sweep_best"] or ():
      c, wants = config(name, f"res={best['res']}"), best["resolved"]
      where = f"{name} {best['res']}"
      assert (c.lr, c.wd, c.label_smoothing) == (
        wants["lr"], wants["wd"], wants["label_smoothing"]
      ), where  # fmt: skip
      assert c.total_epochs == wants["epochs"], where
      assert c.get("total_examples") == wants["total_examples"], where
      assert c.input.batch_size == wants["batch_size"], where
      assert c.model.llm.dropout == wants["llm_dropout"], where
      frozen = [pattern for pattern, what in c.params if what.startswith("freeze")]
      assert frozen == wants["frozen"], where
      assert c.model_init == f"pt_{best['res']}", where
      assert (c.optax_name, c.optax.to_dict()) == ("scale_by_adam", {"b2": 0.999}), where
      assert c.grad_clip_norm == original["optimizer"]["grad_clip_norm"], where
      assert c.text_len == original["text_len"], where
      assert c.num_frames == (original.get("video") or {}).get("num_frames", 0), where


@needs_spec
def test_data_and_ops_are_the_originals():
  for name, original in originals().items():
    default = original["default_res"]
    for res in original["resolutions_in_sweep_best"] or [224]:
      c = config(name, f"res={res}")
      wants = original_ops(original["train_pp_before_text_packing"], res, default)
      got, keep = ops(c.input.pp)
      assert got == wants, f"{name} {res}: {set(got) ^ set(wants)}"
      assert keep == {"image", "prefix", "suffix"}
    check_training_data(config(name).input.data, original["datasets_train"], name)
    final = original["final_split"]
    if final and "split" in final.get("train_with_final_split_true", [{}])[0]:
      c = config(name, "final_split")
      check_training_data(c.input.data, final["train_with_final_split_true"], name)
    check_evaluators(name, original)


def check_training_data(data, wants, name):
  data = data.to_dict()
  if "one_per_language" in wants[0]:
    split, weight = wants[0]["split"], wants[0]["weight"]
    assert data == {
      f"train_{lang}": dict(name="coco35l", split=split.replace("<lang>", lang), weight=weight)
      for lang in wants[0]["one_per_language"]
    }
  elif "name" not in wants[0] or wants[0]["name"].startswith("("):
    assert {s: part["weight"] for s, part in data.items()} == {
      w["split"]: w["weight"] for w in wants
    }
    assert all(not part["deterministic_fs"] for part in data.values())
    for part in data.values():
      for field, value in wants[0].get("other", {}).items():
        assert part[field] == value, name
  elif wants[0]["weight"] is None:
    assert (data["name"], same_split(data["split"])) == (
      wants[0]["name"], same_split(wants[0]["split"])
    ), name  # fmt: skip
  else:  # A mixture; ours may share the split.
    for w in wants:
      part = data[w["name"]]
      weight = part["weight"] if isinstance(part, dict) else part
      assert weight == w["weight"], name
      assert (part["split"] if isinstance(part, dict) else data["split"]) == w["split"], name


def check_evaluators(name, original):
  c, default = config(name, f"res={original['default_res']}"), original["default_res"]
  listed = {}
  for e in original["evaluators"]:
    if languages := e.get("languages"):
      for lang in languages:
        text = json.dumps(e).replace("<lang>", lang).replace(f'_{lang}"', f'_{lang}"')
        listed[e["key"].replace("<lang>", lang)] = json.loads(text)
    else:
      listed[e["key"]] = e
  assert set(c.evals) == set(listed), name
  for key, e in listed.items():
    ours, where = c.evals[key], f"{name}: {key}"
    kind = e["type"].split(".")[-1]
    assert ours.type == KINDS.get(kind, kind), where
    assert (ours.log_percent, ours.skip_first) == (e["log_percent"], e["skip_first"]), where
    for field, value in e["data"].items():
      if not str(value).startswith("(") and value is not None:
        got = ours.data[field]
        same = same_split(got) == same_split(value) if field == "split" else got == value
        assert same, f"{where} {field}"
    got, keep = ops(ours.pp)
    if ours.type == "perplexity":
      assert ours.pp == c.input.pp, where
      continue
    beams = e["pred_kw"].get("beam_size")
    assert ours.decode == (f"beam({beams})" if beams else None), where
    assert ours.max_decode_len == e["pred_kw"]["max_decode_len"], where
    assert ours.to_lower == e.get("to_lower", False), where
    if "out_question_key" in e:
      assert ours.out_question_key == e["out_question_key"], where
      assert ours.out_answer_key == e.get("out_answer_key", "answer"), where
    metrics = tuple(m.removesuffix("-4") for m in e.get("metrics", ["cider"]))
    assert tuple(ours.caption_metrics) == metrics, where
    lang = key.split("/")[1].removeprefix("test_").removeprefix("zs_") if "languages" in e else ""
    text = json.dumps(e["pp_before_text_packing"])
    text = text.replace(f'question_{lang}"', 'question_id"').replace(
      f'example_{lang}"', 'example_id"'
    )
    wants = original_ops(json.loads(text), default, default)
    assert got == wants, f"{where}: {set(got) ^ set(wants)}"
    packed = {"text", "mask_ar", "mask_input", "image"} | {
      f"{n}_{lang}" for n in ("mask", "question")
    }
    packed.add(f"image/{lang}")
    assert set(e["keep"]) - packed <= keep, where


@needs_spec
def test_scores_are_those_of_the_papers():
  numbers, readme = spec("paper_numbers.json"), spec("paligemma1_results.json")["rows"]
  first = numbers["paligemma1"]["table1_results"]["results"]
  second = numbers["paligemma2"]["table13_transfer_results"]["results"]
  both = numbers["paligemma2"]["table15_pg1_vs_pg2_3b"]["results"]
  printed = [value for row in readme for v in row["scores"].values() for value in flat(v)]
  seen = set()
  docci = numbers["paligemma2"]["other_tasks"]["docci_448"]
  for score in ("chars", "sents"):
    (ours,) = [r for (_, _, s), r in published.RESULTS["docci"].items() if s == score]
    assert {size: by_res[448][0] for size, by_res in ours.items()} == {
      "v1": docci["pg1_3b"][score], "3b": docci["3b"][score], "10b": docci["10b"][score]
    }  # fmt: skip
  for rows in (rows for task, rows in published.RESULTS.items() if task != "docci"):
    for (paper, _, _), by_size in rows.items():
      old = paper.replace(" (test server)", "")
      old = old if old in first else old.replace(" (", "(")
      seen |= {("1", old), ("2", paper)}
      for size, by_res in by_size.items():
        for res, (mean, deviation) in by_res.items():
          if size in ("3b", "10b", "28b"):
            wants = second[paper][str(res)][size]
            assert (mean, deviation) == (wants["mean"], wants["std"]), paper
          elif size == "v1" and old in first and (paper in second or "server" in paper):
            wants = first[old][str(res)]
            assert (mean, deviation) == (wants["mean"], wants.get("std")), paper
          elif size == "v1" and str(res) in both.get(paper, {}):
            assert (mean, deviation) == (both[paper][str(res)]["pg1"], None), paper
          else:
            assert deviation is None
            assert mean in printed or round(mean / 100, 4) in printed, paper
  numbered = {("1", name) for name in first} | {("2", name) for name in second}
  assert numbered - seen == {("1", "Objaverse-Multiview"), ("1", "MMVP"), ("1", "POPE")}
  assert {size for name, size in missing_sizes(second)} == set()
  blog = numbers["seed_blog_figures"]["quantisation_textvqa_3b_224"]
  assert list(published.QUANTIZED_TEXTVQA.values()) == [blog[n] for n in ("bf16", "int8", "nf4")]


def flat(value):
  return value if isinstance(value, list) else [value]


def missing_sizes(table13):
  """(the paper's name, size) of results in table 13 that RESULTS has not."""
  known = {
    (paper, res, size)
    for rows in published.RESULTS.values()
    for (paper, _, _), by_size in rows.items()
    for size, by_res in by_size.items()
    for res in by_res
  }
  for name, by_res in table13.items():
    for res, by_size in by_res.items():
      yield from ((name, size) for size in by_size if (name, int(res), size) not in known)


@needs_spec
def test_learning_rates_are_the_best_of_the_papers_sweep():
  sweep = spec("paper_numbers.json")["paligemma2"]["table14_lr_sweep_224px"]["results"]
  elsewhere = ("nocaps", "xm3600", "xgqa", "marvl", "countbench")
  for task, rates in published.LEARNING_RATES.items():
    names = [p for p, e, _ in published.RESULTS[task] if not e.startswith(elsewhere)]
    if task == "rsvqa_hr":
      names = ["RSVQA-hr"]
    if task == "refcoco_seg":  # Chosen on validation splits.
      names = [name for name in names if "(val)" in name]
    rows = [sweep.get(n, sweep.get(f"{n} (minival)")) for n in names]
    rows = [row for row in rows if row]
    assert rows, task
    for size in rows[0]:
      means = {}
      for rate in rows[0][size]["by_lr"]:
        means[float(rate)] = round(sum(row[size]["by_lr"][rate] for row in rows) / len(rows), 6)
      best = max(means.values())
      assert rates[size] == min(rate for rate, mean in means.items() if mean == best), (task, size)
    assert set(rates) == set(rows[0]), task


def test_every_score_has_its_evaluator():
  """Also in the other direction: what a report shows beside ours is of that size and resolution."""
  assert set(published.RESULTS) == set(TRANSFERS)
  for task, rows in published.RESULTS.items():
    for (_, evaluator, score), by_size in rows.items():
      size, by_res = list(by_size.items())[-1]
      res, (mean, deviation) = list(by_res.items())[-1]
      c = config(task, f"size={size},res={res}")
      names = published.AVERAGES.get(evaluator, [evaluator])
      assert set(names) <= set(c.evals), (task, evaluator)
      if names == [evaluator]:
        shown = c.evals[evaluator].published[score]
        shown = shown if isinstance(shown, tuple) else (shown, None)
        unit = 1 if score in published.ABSOLUTE else 100
        assert shown == pytest.approx((mean / unit, deviation and deviation / unit), abs=1e-9)
  known = {e: task for task, scores in published.RESULTS.items() for _, e, _ in scores}
  assert set(known) >= published.ON_A_SERVER | published.FINAL_SPLIT
  for name in published.ON_A_SERVER:  # Writes what is uploaded.
    assert config(name.split("/")[0]).evals[name].out_question_key
  for task in {known[name] for name in published.FINAL_SPLIT}:
    assert config(task, "final_split").input.data != config(task).input.data
  assert not config("ai2d", "variant=tiny").evals["ai2d/eval"].published


def test_every_size_and_resolution_is_valid_and_its_ops_parse():
  tiny, parsed = tokenizer.load("tiny"), set()
  for name in TRANSFERS:
    sizes = {s: by for rows in published.RESULTS[name].values() for s, by in rows.items()}
    args = [f"size={size},res={res}" for size, by in sizes.items() for res in by]
    args += ["variant=tiny,res=32,batch_size=8"] if name in ("aokvqa_mc", "msvd_qa") else []
    for arg in args:  # tests/papers/test_commands_run.py runs all at variant=tiny.
      path = ROOT / "configs" / f"{name}.py"
      c = config_validate.validated(config_load.load(f"{path}:{arg}"))
      pps = [c.input.pp, *(entry.pp for entry in c.evals.values())]
      parsed |= {re.sub("caption [a-z]+'", "caption en'", pp) for pp in pps}  # Many languages.
  for pp in parsed:
    parse.parse(pp.replace("|refcoco_mask2str", ""), tokenizer=tiny)  # Which needs its weights.


def test_data_sets_are_read_as_prepared():
  """Also where a source for files has the same name: coco_captions."""
  for name in TRANSFERS:
    for data in [config(name).input.data, *(e.data for e in config(name).evals.values())]:
      known = data.get("name")
      if known not in (None, "jsonl", "video"):
        with pytest.raises(UserError, match="is not prepared in /nowhere"):
          registry.open({"name": known, "split": "train", "data_dir": "/nowhere"})


def test_arguments_change_what_they_name():
  assert config("gqa").params == common.TUNE["full"]
  assert config("gqa", "res=448").params == common.TUNE["decoder"]
  assert config("gqa", "res=448,tune=full").params == common.TUNE["full"]
  assert "strfmt('hm {question}'" in config("gqa", "prefix=hm {question}").input.pp
  c = config("ai2d", "size=10b,data_dir=/data")
  assert (c.lr, c.wd) == (1e-6, 1e-7)
  assert c.input.data.to_dict() == dict(name="ai2d", split="train[:-1024]", data_dir="/data")
  assert c.evals["ai2d/eval"].data.data_dir == "/data"
  assert config("ai2d", "tune=lora").lr == pytest.approx(1e-4)
  assert config("activitynet_qa", "size=28b").lr == config("activitynet_qa", "size=10b").lr == 6e-6
  assert config("cococap", "beam_size=0").evals["cococap/eval"].decode is None
  assert "random_crop(224)" in config("cococap", "crop=rc").input.pp
  assert "BECAUSE: {solution}" in config("science_qa", "afmt=AL").input.pp
  assert config("infovqa", "res=896").input.batch_size == 32
  assert config("infovqa", "res=896,batch_size=8").input.batch_size == 8
  assert not any(name.startswith("xm3600") for name in config("coco35l", "eval_xm3600=false").evals)
  shown = config("pope", "size=mix,res=448").evals["pope/pope_random"].published
  assert shown.to_dict() == {"acc": 0.8937}
