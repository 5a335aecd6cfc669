"""Checks the data of a config before training: a report, and pictures of a batch.

All texts and images of the training data and of every evaluator are read. OUT gets report.txt,
check.json, check.html (report and pictures) and example_N.png: the first examples of the run as the
model receives them. The exit status is 1 if there is an error, 0 if there are only warnings.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import collections
import functools
import io
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from etils import epy

from pgjax import cli, disk
from pgjax.config import contents
from pgjax.distributed import launchers
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import jax

  from pgjax.checkpoints import tokenizers
  from pgjax.data import loader as loader_lib, pipeline, tokenizer as tokenizer_lib
  from pgjax.data_check import boxes as box_check, compare, findings, page as check_page, scan
  from pgjax.formats import buckets, outputs, seg_vae_npz
  from pgjax.models import paligemma, seg_vae
  from pgjax.visualization import batch as draw_batch

MAX_TEXTS = 200_000  # Of each data set; beyond, an evenly spaced sample.


def main(args: Any) -> int:
  """Writes the report and the pictures; returns the exit status."""
  launch = launchers.detect()
  if launch.index:
    return 0
  if launch.count > 1:
    cli.say(f"One process checks the data; the other {launch.count - 1} have nothing to do.")
  jax.config.update("jax_platforms", "cpu")
  with outputs.folder(args.out, "--out") as output:
    return write(args, output)


def write(args: Any, output: outputs.Output) -> int:
  """The report of `main`."""
  out, config = output.path, args.config
  tokenizer = load_tokenizer(config)
  opened, problems = open_all(config, tokenizer)
  facts, more = look(opened, config, args.images)
  problems = sorted([*problems, *more], key=lambda f: f.level != findings.ERROR)
  training = [split.loader for split, _ in opened if not split.name.startswith("evals.")]
  pictures = list(draw(config, training, tokenizer, args.num))
  text = check_page.text(problems) or "No problems found."
  report = "\n\n".join(filter(None, [check_page.report(facts), text]))
  for name, png, _ in pictures:
    disk.write(out / f"{name}.png", png)
  as_json = check_page.as_json(args.config_spec, facts, problems)
  disk.write(out / "report.txt", f"{args.config_spec}\n\n{report}\n")
  disk.write(out / "check.json", json.dumps(as_json, indent=2) + "\n")
  page = check_page.page(title_of(config), args.config_spec, facts, problems, pictures)
  disk.write(out / "check.html", page)
  where = f"{args.out.rstrip('/')}/check.html" if buckets.is_url(args.out) else out / "check.html"
  cli.say(f"\n{report}\n\n{check_page.verdict(problems)}; {where}")
  return int(any(f.level == findings.ERROR for f in problems))


def title_of(config: Any) -> str:
  """What is checked: "Data check: train.json, valid.json"."""
  names: dict[str, None] = {}
  for section in (config.input, *config.evals.values()):
    data = section.data.to_dict()
    mixed = not isinstance(data.get("name"), str)
    for name, own in data.items() if mixed else [(data["name"], data)]:
      if isinstance(own, dict) and "fname" in own:
        names[str(own["fname"])] = None
      elif name not in ("split", "data_dir", "root"):
        split = (own if isinstance(own, dict) else {}).get("split") or data.get("split") or ""
        names[f"{name} {split}".strip()] = None
  files = collections.Counter(pathlib.PurePath(name).name for name in names)
  parts = {name: pathlib.PurePath(name).parts for name in names}
  short = ["/".join(p[-2:] if files[p[-1]] > 1 else p[-1:]) for p in parts.values()]
  return f"Data check: {', '.join(short)}"


def load_tokenizer(config: Any) -> tokenizer_lib.Tokenizer:
  """The run's tokenizer; of weights on the hub, only its file is downloaded."""
  try:
    return tokenizers.tokenizer_of_run(config)
  except tokenizers.UnavailableError as error:
    raise UserError(
      f"{error} pgjax.check needs only the tokenizer: name a tokenizer.model with"
      " --config.tokenizer=FILE, or use --config.tokenizer=tiny (more tokens for the same text)."
    ) from None


def open_all(config: Any, tokenizer: Any) -> tuple[list[tuple[scan.CheckedSplit, str]], list]:
  """([(split, description of its data)], findings); the training data first."""
  opened, problems = [], []
  allow = config.input.allow_truncated
  sections = [("training", config.input, "suffix", None, True)]
  for name, section in config.evals.items():
    likely = section.type == "perplexity"
    answer, length = ("suffix", None) if likely else (section.answer, section.max_decode_len)
    answer = None if section.type == "detection" else answer  # Its boxes are the truth.
    sections.append((f"evals.{name}", section, answer, length, likely))
  for name, section, answer, length, for_training in sections:
    layout = loader_lib.Layout(config.res, config.text_len, config.num_frames, for_training)
    try:
      parts = pipeline.parts(section.data, check_images=False)
      for part in parts:
        loader = loader_lib.Loader(part, section.pp, tokenizer, layout, config.seed)
        own = name if len(parts) == 1 else f"{name}/{part.name}"
        split = scan.CheckedSplit(own, loader, answer, length, allow)
        opened.append((split, described(section.data, part, parts)))
    except UserError as error:
      problems.append(findings.Finding("not opened", name, 1, None, (str(error),)))
  return opened, problems


def described(data: Any, part: loader_lib.Part, parts: list[loader_lib.Part]) -> str:
  """The data's entry in the config; for a part of a mixture, its name and the shared fields."""
  fields = data.to_dict()
  if len(parts) > 1:
    shared = {name: fields[name] for name in ("split", "data_dir", "root") if name in fields}
    own = fields[part.name] if isinstance(fields[part.name], dict) else {}
    fields = {"name": part.name, **shared, **own, "weight": part.weight}
  return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def look(opened: list[tuple[scan.CheckedSplit, str]], config: Any, max_images: int):
  """({name: facts}, findings); images of shared data are read once, its texts each time."""
  facts: dict[str, Any] = {}
  problems: list[findings.Finding] = []
  seen_of: dict[str, tuple[str, dict[int, str]]] = {}
  trained: list[tuple[scan.CheckedSplit, compare.Seen]] = []
  training, asked = None, collections.Counter()
  for split, data in opened:
    total = len(split.source)
    rows = scan.evenly(total, MAX_TEXTS)
    cli.say(f"Checking {split.name}: {total:,} examples")
    of_texts = findings.Book(split.name, split.source.where)
    texts, answers = scan.texts(split, rows, of_texts)
    if split.name.startswith("evals."):
      compare.other_prompts(answers, asked, of_texts)
    else:
      asked.update(compare.prompts_of(answers))
    facts[split.name] = dict(data=data, examples=total, texts=texts)
    news = of_texts.findings(len(rows))
    if data in seen_of:
      facts[split.name]["data"] = f"that of {seen_of[data][0]}"
      reported = {(f.kind, f.examples) for f in problems}
      problems += [f for f in news if (f.kind, f.examples) not in reported]
      continue
    own, digests, more = of_raw(split, config, rows, scan.evenly(total, max_images))
    facts[split.name] |= own
    seen_of[data] = split.name, digests
    seen = compare.Seen(digests, answers)
    of_pairs = findings.Book(split.name, split.source.where)
    compare.repeats(seen, split.source.where, of_pairs)
    if split.name.startswith("evals."):
      training = compare.of_training(trained) if training is None else training
      compare.leaks(seen, training, of_pairs)
    else:
      trained.append((split, seen))
    problems += [*news, *more, *of_pairs.findings(len(digests))]
  return facts, problems


def of_raw(split: scan.CheckedSplit, config: Any, rows: list[int], with_images: list[int]):
  """(facts, {index: digest of its images}, findings) of the columns, masks and images."""
  source = split.source
  of_rows, of_images = (findings.Book(split.name, source.where) for _ in range(2))
  facts: dict[str, Any] = dict(columns=scan.columns(split, rows, of_rows))
  if masked := box_check.objects_with_masks(source, rows, of_rows):
    facts["masks"] = mask_facts(masked, config, of_rows)
  if read_as := getattr(source, "read_as", ()):
    facts["read_as"] = list(read_as)
  if omitted := getattr(source, "omitted", ""):
    of_rows.add_to_data("left out", omitted)
  for note in getattr(source, "notes", ()):
    of_rows.add_to_data("source", note)
  threads = config.input.num_threads
  facts["images"], digests = scan.pictures(split, with_images, threads, of_images)
  return facts, digests, of_rows.findings(len(rows)) + of_images.findings(len(with_images))


def mask_facts(masked: list[tuple], config: Any, book: findings.Book) -> dict[str, Any]:
  """Round trips of masks, if the weights of the VQ-VAE are available."""
  try:
    params = seg_vae_npz.load(mask_weights(config))
  except UserError as error:
    return dict(number=len(masked), mean_iou=None, why_not=str(error))
  coder = (functools.partial(seg_vae.encode, params), functools.partial(seg_vae.decode, params))
  return box_check.mask_round_trips(masked, coder, book) | dict(why_not="none can be encoded")


def mask_weights(config: Any) -> str:
  """The VQ-VAE that pp names, or PaliGemma's."""
  named = re.search(
    r"(?:masks_to_suffix|refcoco_mask2str)\([^)]*?['\"]([^'\"]+)",
    "|".join(contents.ops_of(config.input)),
  )
  return named[1] if named else "oi"


def draw(config: Any, loaders: list[loader_lib.Loader], tokenizer: Any, num: int) -> Iterator:
  """(name, PNG bytes, (prompt, answer)) of the run's first valid examples."""
  if not loaders:
    return
  patches = draw_batch.patches_of(paligemma.Model(**config.model), config.res)
  stream, weights = pipeline.mixture(loaders, config.seed), mask_weights(config)
  try:
    seg_vae_npz.load(weights)
  except UserError:  # Only boxes.
    weights = None
  drawn = 0
  for g in range(4 * num):  # Some may be broken.
    if drawn == num:
      return
    try:
      row = stream[g]
    except Exception:  # Reported above.
      continue
    picture = draw_batch.example(
      row.arrays, tokenizer, title=f"Example {g} of the run", patches=patches, mask_weights=weights
    )
    file = io.BytesIO()
    picture.save(file, "PNG")
    yield f"example_{g}", file.getvalue(), draw_batch.answer_of(row.arrays, tokenizer)
    drawn += 1


FLAGS = [
  cli.Flag(
    "out", str, required=True, help="folder for the report and the pictures; or s3://, gs://"
  ),
  cli.Flag("num", int, 8, least=0, help="examples to draw"),
  cli.Flag("images", int, 50_000, least=1, help="examples per data set whose images are read"),
]
CONFIG = "required"
EXAMPLES = [
  "python -m pgjax.check --config=configs/easyvqa.py --out=/tmp/check",
  "python -m pgjax.check --config=configs/forkme.py:train=data/train.jsonl,val= --out=/tmp/check",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
