"""Miniature downloads of the question-answering data sets, in their official layouts.

`MAKERS[name](folder)` writes one, with 2 to 5 rows a split; the texts and ids are made up. What
big_vision's builders make of them is in tests/golden/question_data_sets.json.
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image, ImageFont


def picture(path: pathlib.Path, seed: int, size: tuple[int, int] = (9, 7)) -> None:
  """An image of (width, height) with colours of its own, in the format of the name."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
  Image.fromarray(pixels).save(path)


def write(path: pathlib.Path, value) -> None:
  """A JSON file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def ai2d(raw):
  for i in range(4):
    picture(raw / f"ai2d/images/{i}.png", i, (120, 80))
    asked = {
      f"question {i} {q}": dict(
        questionId=f"{i}.png-{q}",
        correctAnswer=(i + q) % 3,
        answerTexts=["wing", "eye", "beak"] if q else ["A", "B", "C"],
        abcLabel=q == 0 and i > 0,
      )
      for q in range(2)
    }
    write(raw / f"ai2d/questions/{i}.png.json", dict(imageName=f"{i}.png", questions=asked))
    label = dict(rectangle=[[10, 10], [60, 40]], replacementText="B")
    write(raw / f"ai2d/annotations/{i}.png.json", dict(text={"T1": label}))
  (raw / "ai2d_test_ids.csv").write_text("1\n3\n")
  (raw / "DMSans-Regular.ttf").write_bytes(ImageFont.load_default(10).path.getvalue())


def aokvqa(raw):
  for split, first in (("train", 0), ("val", 10), ("test", 20)):
    rows = []
    for i in range(first, first + 3):
      picture(raw / f"{split}2017" / f"{i:012d}.jpg", i)
      row = dict(question_id=f"id{i}", image_id=i, question=f"why {i}?", choices=list("abcd"))
      row |= dict(difficult_direct_answer=i % 2 == 0, split=split)
      if split != "test":
        row |= dict(direct_answers=[f"a{i}"] * 10, rationales=["r", "s", "t"])
        row |= dict(correct_choice_idx=i % 4)
      rows.append(row)
    write(raw / f"aokvqa_v1p0_{split}.json", rows)


def chartqa(raw):
  for number, split in enumerate(("train", "val", "test")):
    for part in ("human", "augmented"):
      rows = []
      for i in range(3):
        picture(raw / split / "png" / f"{i}.png", 10 * number + i)
        rows.append(dict(imgname=f"{i}.png", query=f"{part} {i}?", label=f"{i}.5"))
      write(raw / split / f"{split}_{part}.json", rows)


def docvqa(raw):
  for number, split in enumerate(("train", "val", "test")):
    rows = []
    for i in range(4):
      image = f"documents/page{i // 2}.png"
      picture(raw / split / image, 10 * number + i // 2)
      row = dict(questionId=1000 * number + i, question=f"what {i}?", image=image, docId=5)
      rows.append(row | (dict(answers=["One", f"{i}"]) if split != "test" else {}))
    name = "test_v1.0.json" if split == "test" else f"{split}_v1.0_withQT.json"
    write(raw / name, dict(dataset_name="docvqa", dataset_split=split, data=rows))


def gqa(raw):
  for number, split in enumerate(("train_balanced", "val_balanced", "testdev_balanced")):
    rows = {}
    for i in range(4):
      picture(raw / "images" / f"n{number}{i // 2}.jpg", 10 * number + i // 2)
      rows[f"0{number}35{i}"] = dict(
        imageId=f"n{number}{i // 2}", question=f"is {i}?", answer="yes", fullAnswer=f"Yes, {i}.",
        isBalanced=True, semantic=[dict(operation="select", dependencies=[], argument="x")],
      )  # fmt: skip
    write(raw / f"{split}_questions.json", rows)


def xgqa(raw):
  for number, language in enumerate(("bn", "de", "en", "id", "ko", "pt", "ru", "zh")):
    picture(raw / "images" / f"n{number}.jpg", number)
    rows = {
      f"20{i}": dict(imageId=f"n{number}", question=f"Größe {i} {language}?", answer="no")
      for i in range(2)
    }
    zero = f"annotations/zero_shot/testdev_balanced_questions_{language}.json"
    write(raw / zero, rows)
    for name in ("test", "dev", *(f"train_{n}" for n in (1, 5, 10, 20, 25, 48))):
      write(raw / f"annotations/few_shot/{language}/{name}.json", rows)


def infovqa(raw):
  names = dict(train="train_v1.0", val="val_v1.0_withQT", test="test_v1.0")
  for number, (split, name) in enumerate(names.items()):
    rows = []
    for i in range(3):
      picture(raw / "images" / f"{number}{i}.jpeg", 10 * number + i)
      row = dict(questionId=100 * number + i, question=f"who {i}?")
      row |= dict(image_local_name=f"{number}{i}.jpeg")
      answers = [["one"], ["a, b, c", "d"], ["x, y"]][i]
      rows.append(row | (dict(answers=answers) if split != "test" else {}))
    write(raw / f"infographicsVQA_{name}.json", dict(data=rows))


def ocrvqa_id(raw):
  books = {}
  for i in range(8):
    if i != 5:  # A cover that could not be downloaded.
      picture(raw / "images" / f"00{i}.jpg", i)
    books[f"00{i}"] = dict(
      imageURL=f"book{i}.jpg", title=f"Title {i}", split=(1, 1, 2, 3)[i % 4],
      questions=["Who wrote this?", f"Is this {i}?"], answers=["Author", "Yes"],
    )  # fmt: skip
  write(raw / "dataset.json", books)


def okvqa(raw):
  for number, split in enumerate(("train", "val")):
    questions, annotations = [], []
    for i in range(3):
      image = 100 * number + i
      picture(raw / f"{split}2014" / f"COCO_{split}2014_{image:012d}.jpg", image)
      ids = dict(image_id=image, question_id=10 * image)
      questions.append(ids | dict(question=f"which {i}?"))
      answers = [
        dict(answer=f"a{n % 3}", raw_answer=f"a{n % 3}s", answer_confidence=("yes", "no")[n % 2])
        for n in range(10)
      ]
      kinds = dict(question_type=("one", "ten", "other")[i], answer_type="other")
      annotations.append(ids | kinds | dict(answers=answers, confidence=3))
    name = f"mscoco_{split}2014"
    write(raw / f"OpenEnded_{name}_questions.json", dict(questions=questions))
    write(raw / f"{name}_annotations.json", dict(annotations=annotations[::-1]))


def pope(raw):
  things = ["a snow board", "an orange", "a car"]
  for number, kind in enumerate(("random", "popular", "adversarial")):
    lines = []
    for i, thing in enumerate(things):
      name = f"COCO_val2014_{i:012d}.jpg"
      picture(raw / "images/val2014" / name, i)
      row = dict(question_id=i + 1, image=name, text=f"Is there {thing} in the image?")
      lines.append(json.dumps(row | dict(label=("yes", "no")[(i + number) % 2])))
    path = raw / f"pope/coco_pope_{kind}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _rsvqa(raw, prefix, splits, folder, ending, answers):
  for number, split in enumerate(splits):
    questions, found = [], []
    for i, (kind, answer) in enumerate(answers):
      row = dict(id=100 * number + i, active=kind is not None)
      given = dict(id=700 + i, active=kind is not None)
      if kind is not None:
        image = 10 * number + i // 3
        picture(raw / folder / f"{image}.{ending}", image)
        row |= dict(type=kind, question=f"{kind} {i}?", img_id=image, answers_ids=[700 + i])
        given |= dict(question_id=row["id"], answer=answer)
      questions.append(row)
      found.append(given)
    write(raw / f"{prefix}_split_{split}_questions.json", dict(questions=questions))
    write(raw / f"{prefix}_split_{split}_answers.json", dict(answers=found))


def rsvqa_lr(raw):
  counts = [("count", str(n)) for n in (0, 10, 11, 1000, 1001)]
  answers = [("presence", "yes"), (None, ""), ("rural_urban", "rural"), *counts]
  _rsvqa(raw, "LR", ("train", "val", "test"), "Images_LR", "tif", answers)


def rsvqa_hr(raw):
  areas = [("area", f"{n}m2") for n in (0, 10, 11, 1000, 1001)]
  answers = [("presence", "no"), (None, ""), ("comp", "yes"), ("count", "7"), *areas]
  _rsvqa(raw, "USGS", ("train", "val", "test", "test_phili"), "Data", "png", answers)


def science_qa(raw):
  problems = {}
  for i in range(9):
    split = ("train", "val", "test")[i % 3]
    image = "image.png" if i != 3 else None
    if image:
      picture(raw / split / str(i) / image, i)
    fixed = dict(task="closed choice", subject="natural science", topic="physics", category="c")
    fixed |= dict(skill="s", lecture="", solution="z", grade=f"grade{i}")
    choices = ["one", "two", "three"][: 2 + i % 2]
    asked = dict(question=f"which {i}?", choices=choices, answer=i % 2)
    hint = "" if i < 5 else f"hint {i}"
    problems[str(i)] = dict(split=split, image=image, hint=hint, **asked, **fixed)
  write(raw / "problems.json", problems)


STVQA_VAL = ("VizWiz/2.jpg", "coco-text/COCO_train2014_4.jpg")


def stvqa(raw):
  for name, paths in (
    ("train", ["VizWiz/1.jpg", "VizWiz/2.jpg", "icdar/3.png", STVQA_VAL[1]]),
    ("test", ["icdar/5.jpg", "coco-text/COCO_train2014_6.jpg"]),
  ):
    rows = []
    for i, path in enumerate(paths):
      folder = raw / ("test_task3_images" if name == "test" else "train_images")
      picture(folder / path, i)
      if path.startswith("coco-text"):
        picture(raw / "train2014" / path.removeprefix("coco-text/"), i + 50)
      row = dict(question_id=10 * i + len(name), question=f"text {i}?", file_path=path)
      rows.append(row | (dict(answers=[f"A{i}"]) if name == "train" else {}))
    write(raw / f"{name}_task_3.json", dict(data=rows))


def tallyqa(raw):
  images = ["VG_100K/1.jpg", "VG_100K_2/2.jpg"]
  coco = ["train2014/COCO_train2014_000000000003.jpg", "val2014/COCO_val2014_000000000004.jpg"]
  for split, names in (("train", images + coco), ("test", images)):
    rows = []
    for i, name in enumerate(names):
      picture(raw / name, i)
      row = dict(image=name, image_id=i, question_id=7 * i, question=f"how many {i}?", answer=i)
      row |= dict(data_source="imported_genome")
      rows.append(row | (dict(issimple=i == 0) if split == "test" else {}))
    write(raw / f"{split}.json", rows)


def countbenchqa(raw):
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = []
  for i in range(5):
    mode = "L" if i == 3 else "RGB"
    pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG")
    stored = dict(bytes=out.getvalue(), path=None) if i != 1 else None
    rows.append(dict(image_url=f"u{i}", text=f"{i} cats", number=i, image=stored))
  pq.write_table(pa.Table.from_pylist(rows), raw / "train-00000-of-00001-0.parquet")
  asked = [dict(question=f"How many {i}?") for i in range(5)]
  write(raw / "countbench_paired_questions.json", asked)


def textvqa(raw):
  for number, (split, folder) in enumerate(
    dict(train="train_images", val="train_images", test="test_images").items()
  ):
    rows = []
    for i in range(3):
      image = f"{number}{i}a"
      picture(raw / folder / f"{image}.jpg", 10 * number + i, (16, 8))
      row = dict(question_id=100 * number + i, question=f"says {i}?", image_id=image)
      rows.append(row | (dict(answers=["a"] * 10) if split != "test" else {}))
    write(raw / f"TextVQA_0.5.1_{split}.json", dict(data=rows))
  for folder, names in (("train_images", ["00a", "01a", "02a", "10a", "11a", "12a"]),
                        ("test_images", ["20a", "21a", "22a"])):  # fmt: skip
    turns = ["0.0", "90.0", "", "180.0", "0", "270.0"]
    lines = ["ImageID,Subset,Rotation"]
    lines += [f"{name},train,{turn}" for name, turn in zip(names, turns, strict=False)]
    (raw / folder / "rotation.csv").write_text("\n".join(lines) + "\n")


def vizwizvqa(raw):
  for number, split in enumerate(("train", "val", "test")):
    rows = []
    for i in range(3):
      name = f"VizWiz_{split}_{i:08d}.jpg"
      picture(raw / split / name, 10 * number + i)
      row = dict(image=name, question=f"what {i}?")
      if split != "test":
        given = [("cat", "yes"), ("", "no"), ("dog", "maybe")]
        answers = [dict(answer=answer, answer_confidence=sure) for answer, sure in given]
        row |= dict(answers=answers, answerable=i % 2, answer_type="other")
      rows.append(row)
    write(raw / f"annotations/{split}.json", rows)


def vqa(raw):
  for number, name in enumerate(("train2014", "val2014", "test2015", "test-dev2015")):
    folder = name.replace("-dev", "")
    questions, annotations = [], []
    for i in range(4):
      image = 1000 * number + i // 2
      if i < 3 or "test" not in name:  # Some test images are in no folder.
        picture(raw / folder / f"COCO_{folder}_{image:012d}.jpg", image)
      image += 500 if i == 3 and "test" in name else 0
      ids = dict(image_id=image, question_id=1000 * number + i)
      questions.append(ids | dict(question=f"what {i}?"))
      answers = [
        dict(answer=f"a{n % 2}", answer_confidence=("no", "maybe", "yes")[n % 3], answer_id=n + 1)
        for n in range(10)
      ]
      kinds = dict(question_type="what", answer_type="other", multiple_choice_answer="a0")
      annotations.append(ids | kinds | dict(answers=answers))
    write(raw / f"v2_OpenEnded_mscoco_{name}_questions.json", dict(questions=questions))
    if "test" not in name:
      write(raw / f"v2_mscoco_{name}_annotations.json", dict(annotations=annotations))


MAKERS = dict(
  ai2d=ai2d, aokvqa=aokvqa, chartqa=chartqa, countbenchqa=countbenchqa, docvqa=docvqa, gqa=gqa,
  infovqa=infovqa, ocrvqa_id=ocrvqa_id, okvqa=okvqa, pope_adversarial=pope, pope_popular=pope,
  pope_random=pope, rsvqa_hr=rsvqa_hr, rsvqa_lr=rsvqa_lr, science_qa=science_qa, stvqa=stvqa,
  tallyqa=tallyqa, textvqa=textvqa, vizwizvqa=vizwizvqa, vqa=vqa, xgqa=xgqa,
)  # fmt: skip
