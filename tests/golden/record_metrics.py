"""What do the reference programs say of captions, boxes and answers? Writes tests/golden/*.json.

The tests read only the JSON; this program is for doing it again, and needs what they do not:

  java on the PATH, and in this Python pycocoevalcap==1.2 (104 MB; its jars are run) and pycocotools
  --bccd      a folder of images in COCO format: BCCD, its test split (MIT licence)
  --vqa_eval  PythonEvaluationTools/vqaEvaluation/vqaEval.py of github.com/GT-Vision-Lab/VQA at
              commit c4e6a0e4; it is run, and no part of it is kept

Everything drawn at random is drawn from a fixed seed, so that a second run writes the same files.
"""

import argparse
import contextlib
import fractions
import importlib.util
import io
import json
import pathlib
import random
import re
import tempfile

GOLDEN = pathlib.Path(__file__).parent
PIECES = """a dog man's U.S. U.K a.m. p.m. Mr. St. etc. No. vs. don't they're O'Neil d'un cannot
  gonna 12 3.5 1,000 1/2 7:30 5th 1980s '90s $5 US$ \u20ac10 50\xa2 100% #1 #tag @bob www.foo.com
  and/or T-shirt x-ray caf\xe9 \xfcber \u72ac \u0e44\u0e17\u0e22 \u0439 ( ) [ ] " ' ` \u201c
  \u201d \u2019 . , ; : ! ? ... \u2026 - -- \u2014 & * + = / _ \xbd \xb2 \xb0 \u2605 \U0001f436"""
SCENES = """A man|A woman|Two dogs|The U.S. team|A cat's owner|3 children|A red bus|It
is riding|isn't holding|plays with|looks at|are near|was seen with
a wave|the frisbee|an old-fashioned train|(some) pizza|a cell phone|the sea
in the park.|on top of a table|at 7:30 p.m.|, close-up!||next to a big, red sign"""
CLEAN = (
  "yes, no, 2, 10, red, blue sky, don't know, it's 5, left, 1.5, man in hat, who's there, 'twas"
)
LABELS = "Yes|No|2015|1998|0|0.0|Male|Female|[Yes, No]|$5|1,000|5 million|Germany|%|n/a|18-29|0%"
RAW = """Yes|NO.|two|The  red!|a blue sky|dont know|its 5|on the left|1.5|1,000|man in the hat|ten
none|whos there|red/blue|red / blue|it's 5.|An answer, a long one|twas|left-hand|left - hand|U.S.A.
couldnt've|y'alld've|(yes)|yes?|2.|.5|blue;sky|Blue Sky\t|\tman in hat|blue_sky|he said: yes"""


def captions() -> list[str]:
  """The lines of captions.txt, and as many again put together from pieces."""
  lines = (GOLDEN / "captions.txt").read_text(encoding="utf-8").split("\n")[:-1]
  draw, pieces = random.Random(1), PIECES.split()
  for _ in range(220):
    parts = [draw.choice(pieces) + draw.choice(["", " ", " "]) for _ in range(draw.randint(3, 9))]
    lines.append("The " + "".join(parts) + " end")
  return lines


def record_ptb(lines: list[str]) -> list[list[str]]:
  from pycocoevalcap.tokenizer import ptbtokenizer

  rows = {i: [{"caption": line}] for i, line in enumerate(lines)}
  found = ptbtokenizer.PTBTokenizer().tokenize(rows)
  return [[line, found[i][0]] for i, line in enumerate(lines)]


def image_captions() -> tuple[list[str], list[list[str]]]:
  """240 images with a prediction and 1 to 5 references, from near to nothing alike."""
  draw = random.Random(2)
  parts = [line.split("|") for line in SCENES.split("\n")]
  predictions, references = [], []
  for i in range(240):
    scene = [draw.choice(part) for part in parts]

    def near(scene=scene):
      words = [
        w if draw.random() < 0.7 else draw.choice(p) for w, p in zip(scene, parts, strict=True)
      ]
      return " ".join(words)

    references.append([near() for _ in range(draw.randint(1, 5))])
    predictions.append("" if i == 17 else near() if i % 9 else f"{draw.choice(parts[2])} {i}")
  return predictions, references


def record_captions() -> dict:
  from pycocoevalcap.bleu import bleu
  from pycocoevalcap.cider import cider
  from pycocoevalcap.meteor import meteor
  from pycocoevalcap.rouge import rouge
  from pycocoevalcap.tokenizer import ptbtokenizer

  predictions, references = image_captions()
  truths = {i: [{"caption": c} for c in each] for i, each in enumerate(references)}
  answers = {i: [{"caption": c}] for i, c in enumerate(predictions)}
  tokenizer = ptbtokenizer.PTBTokenizer()
  truths, answers = tokenizer.tokenize(truths), tokenizer.tokenize(answers)
  of_split, of_images = {}, {}
  for name, scorer in (
    ("cider", cider.Cider()),
    ("rouge", rouge.Rouge()),
    ("meteor", meteor.Meteor()),
  ):
    value, each = scorer.compute_score(truths, answers)
    of_split[name], of_images[name] = float(value), [float(v) for v in each]
  values, _ = bleu.Bleu(4).compute_score(truths, answers, verbose=0)
  of_split |= {f"bleu-{n + 1}": float(v) for n, v in enumerate(values)}
  return dict(
    predictions=predictions, references=references, of_split=of_split, of_images=of_images
  )


def noised(dataset: dict) -> list[dict]:
  """Boxes as a detector might have them: moved, missing, doubled, of the wrong class, made up."""
  draw, found = random.Random(3), []
  images = {image["id"]: image for image in dataset["images"]}
  for truth in dataset["annotations"]:
    image = images[truth["image_id"]]
    for _ in range(draw.choice([0, 1, 1, 1, 1, 2])):
      x, y, w, h = truth["bbox"]
      if draw.random() < 0.1:
        x, y = draw.uniform(0, image["width"] - w), draw.uniform(0, image["height"] - h)
      x, y = x + draw.gauss(0, 0.06 * w), y + draw.gauss(0, 0.06 * h)
      w, h = w * draw.uniform(0.85, 1.15), h * draw.uniform(0.85, 1.15)
      label = truth["category_id"] if draw.random() < 0.9 else draw.randrange(3)
      found.append(
        dict(
          image_id=truth["image_id"],
          category_id=label,
          bbox=[round(v, 2) for v in (x, y, w, h)],
          score=round(draw.random(), 2),  # With ties.
        )
      )
  return found


def record_detection(folder: pathlib.Path) -> dict:
  """pycocotools on COCO's own JSON files; the boxes are kept as x, y, width, height in pixels."""
  from pycocotools import coco, cocoeval

  dataset = json.loads((folder / "_annotations.coco.json").read_text())
  found = noised(dataset)
  for truth in dataset["annotations"]:
    truth["area"], truth["iscrowd"] = truth["bbox"][2] * truth["bbox"][3], 0
    truth["id"] += 1  # The file begins at 0, which pycocotools takes for "matched with none".
  with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
    truths_json, found_json = (pathlib.Path(temporary) / name for name in ("truths", "found"))
    truths_json.write_text(json.dumps(dataset))
    found_json.write_text(json.dumps(found))
    truths = coco.COCO(str(truths_json))
    evaluation = cocoeval.COCOeval(truths, truths.loadRes(str(found_json)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  names = {category["id"]: category["name"] for category in dataset["categories"]}
  precision = evaluation.eval["precision"]
  of_class = {
    names[k]: float(precision[:, :, i, 0, 2].mean()) for i, k in enumerate(evaluation.params.catIds)
  }
  images = []
  for image in dataset["images"]:
    sides = [
      [
        [names[b["category_id"]], *b["bbox"], b.get("score", 1)]
        for b in side
        if b["image_id"] == image["id"]
      ]
      for side in (dataset["annotations"], found)
    ]
    images.append([image["height"], image["width"], *sides])
  return dict(images=images, stats=[float(v) for v in evaluation.stats], of_class=of_class)


def record_chartqa() -> list[list]:
  """ChartQA's rule (arXiv:2203.10244, section 5.1) in exact arithmetic, on made-up labels."""
  draw, rows = random.Random(4), []
  labels = LABELS.split("|")
  for _ in range(120):
    size = 10 ** draw.uniform(-2, 6)
    labels += [f"{draw.choice([size, -size]):.{draw.randint(0, 3)}f}", f"{size / 1e4:.1f}%"]
  number = re.compile(r"-?(\d+\.?\d*|\.\d+)%?")

  def exact(answer):
    if not number.fullmatch(answer):
      return None
    return fractions.Fraction(answer.rstrip("%")) / (100 if answer.endswith("%") else 1)

  for label in labels:
    guesses = [label, label.lower(), draw.choice(labels)]
    if (wanted := exact(label)) is not None:
      near = float(wanted) * draw.choice([0.9, 0.949, 0.96, 1.0, 1.03, 1.049, 1.051, 1.2])
      guesses += [f"{near:.6f}", f"{100 * near:.4f}%"]
    for guess in guesses:
      wanted, guessed = exact(label), exact(guess)
      if guessed is None or not wanted:
        rows.append([guess, label, guess == label])
      elif abs(error := abs(guessed - wanted) / abs(wanted) - fractions.Fraction(1, 20)) > 1e-9:
        rows.append([guess, label, error < 0])
  return rows


def record_vqa(path: pathlib.Path) -> list[list]:
  """The official program on answers whose ten references differ and are clean already.

  It cleans the references of punctuation alone, and the prediction even if all references agree;
  big_vision, which pgjax follows, cleans all where they differ and nothing where they do not.
  """
  spec = importlib.util.spec_from_file_location("vqaEval", path)
  program = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(program)
  draw = random.Random(5)
  clean, raw = CLEAN.split(", "), RAW.replace("\n", "|").split("|")
  rows, judge = [], program.VQAEval(Asked({}), Asked({}))
  for i in range(300):
    prediction = draw.choice(raw)
    right = judge.processDigitArticle(judge.processPunctuation(prediction))
    pool = [*draw.sample(clean, 2), right]
    references = [draw.choice(pool) for _ in range(9)]
    references.append(pool[0] if set(references) != {pool[0]} else pool[1])
    truth = dict(
      question_type="what",
      answer_type=draw.choice(["yes/no", "number", "other"]),
      answers=[dict(answer=answer, answer_id=k) for k, answer in enumerate(references)],
    )
    asked = Asked({i: truth}), Asked({i: dict(answer=prediction)})
    with contextlib.redirect_stdout(io.StringIO()):
      judged = program.VQAEval(*asked, n=10)
      judged.evaluate([i])
    rows.append([prediction, references, truth["answer_type"], judged.evalQA[i] / 100])
  return rows


class Asked:
  """As much of the official VQA class as the evaluation looks at."""

  def __init__(self, qa: dict):
    self.qa = qa

  def getQuesIds(self):  # noqa: N802
    return list(self.qa)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ("bccd", "vqa_eval"):
    parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
  args = parser.parse_args()
  files = {
    "captions_ptb": lambda: record_ptb(captions()),
    "captions_scores": record_captions,
    "detection": lambda: record_detection(args.bccd),
    "chartqa": record_chartqa,
    "vqa_official": lambda: record_vqa(args.vqa_eval),
  }
  for name, record in files.items():
    text = json.dumps(record(), ensure_ascii=False, separators=(",", ":"))
    (GOLDEN / f"{name}.json").write_text(text.replace("],[", "],\n[") + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
