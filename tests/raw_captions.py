"""Miniature downloads of the caption, pair and segmentation data sets, in their official layouts.

`MAKERS[name](folder)` writes one, with 1 to 5 rows a split; the texts have letters of other
scripts, commas and quotes. What the builders of TFDS and big_vision make of them is in
tests/golden/caption_data_sets.json.
"""

import csv
import io
import json
import pickle
import random
import zlib

import numpy as np
from PIL import Image

from pgjax.datasets import coco35l, coco_instances


def picture(path, height=12, width=16, kind="JPEG"):
  """A small image of noise, another for each path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  seed = zlib.crc32("/".join(path.parts[-4:]).encode())
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  path.write_bytes(file.getvalue())


def write(path, content):
  """A text file, or JSON of anything else."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def lines(path, rows):
  """A JSON Lines file."""
  write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def table(path, names, rows):
  """A CSV file."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\r\n")
  writer.writerows([names, *rows])
  write(path, file.getvalue())


def karpathy(raw):
  """dataset_coco.json and its images, three in each split."""
  images = []
  for i in range(12):
    folder = "train2014" if i % 4 == 0 else "val2014"
    image_id = 9 + 41_000 * i
    name = f"COCO_{folder}_{image_id:012d}.jpg"
    picture(raw / folder / name)
    texts = [f'A "plate", of {n} grün {"x" * n}.' for n in range(i % 3 + 1)]
    images.append(
      dict(
        cocoid=image_id,
        filename=name,
        filepath=folder,
        imgid=i,
        split=("train", "restval", "val", "test")[i % 4],
        sentids=[10 * i + n for n in range(len(texts))],
        sentences=[
          dict(raw=text, sentid=10 * i + n, imgid=i, tokens=text.split())
          for n, text in enumerate(texts)
        ],
      )
    )
  write(raw / "dataset_coco.json", dict(images=images, dataset="coco"))
  return images


def coco_captions(raw, boxes=True):
  images = karpathy(raw)
  for split in ("train", "val") if boxes else ():
    here = [image for image in images if image["filepath"] == f"{split}2014"]
    file = dict(
      info={},
      licenses=[],
      images=[
        dict(id=i["cocoid"], file_name=i["filename"], height=12, width=16, license=3) for i in here
      ],
      annotations=[
        dict(
          id=900_100_581_904 + n,
          image_id=image["cocoid"],
          category_id=(1, 90)[n % 2],
          bbox=[1.5, 2.25, 8.33, 3.0],
          area=24.99,
          iscrowd=n % 2,
          segmentation=[[1, 1, 3, 1, 3, 3]],
        )
        for n, image in enumerate(here[1:])
      ],
      categories=categories(),
    )
    write(raw / f"annotations/instances_{split}2014.json", file)


def categories():
  """COCO's: ids from 1 to 90 have gaps."""
  ids = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
  kinds = coco_instances.SUPERCATEGORIES
  return [
    dict(id=number, name=name, supercategory=kinds[number % 12])
    for number, name in zip(ids, coco_instances.CATEGORIES, strict=True)
  ]


def coco35l_raw(raw, languages=("de", "zh", "fil")):
  images = karpathy(raw)
  for split, chosen in dict(train=images[:4], dev=images[4:7]).items():
    rows = [
      dict(
        image_id=f"{image['cocoid']}_{n}",
        trg_lang=language,
        caption_tokenized=f"a plate , {n}",
        translation_tokenized=f"{language} тарелка 皿 {n}",
        backtranslation_tokenized="",
      )
      for image in chosen
      for language in languages
      if language != "en"
      for n in range(len(image["sentences"]))
    ]
    lines(raw / f"coco_mt_{split}.jsonl", rows)


def xm3600(raw, languages=coco35l.XM3600_LANGUAGES):
  rows = []
  for i in range(3):
    key = f"000411001ff7dd4{i}"
    picture(raw / f"images/{key}.jpg")
    captions = {
      language: {
        "caption": [f"{language} Käse, {n}" for n in range(i + 1)],
        "caption/tokenized": [f"{language} Käse , {n}" for n in range(i + 1)],
        "caption/tokenized/lowercase": [],
      }
      for language in languages
    }
    rows.append({"image/key": key, "image/locale": "en", "image/tile": "x", **captions})
  lines(raw / "captions.jsonl", rows)


def nocaps(raw):
  images = {
    split: [
      dict(
        id=i,
        file_name=f"{split}{i:012x}.jpg",
        coco_url=f"s3/{split}{i}.jpg",
        height=12,
        width=16,
        license=0,
        open_images_id=f"{i:x}",
        date_captured="2018-11-06 11:04:33",
        domain="near-domain",
      )
      for i in range(3)
    ]
    for split in ("validation", "test")
  }
  for split, rows in images.items():
    for row in rows:
      picture(raw / f"Images/{split}" / row["file_name"])
  captions = [dict(image_id=i % 3, id=i, caption=f"Ein “Ding” {i}") for i in range(7) if i % 3 != 2]
  file = dict(images=images["validation"], annotations=captions, info={}, licenses=[])
  write(raw / "nocaps_val_4500_captions.json", file)
  write(raw / "nocaps_test_image_info.json", dict(images=images["test"], info={}))


def text_caps(raw):
  for split in ("train", "val", "test"):
    rows = []
    for i in range(4):
      name = f"{split}{i // 2:05x}"
      folder = "test_images" if split == "test" else "train_images"
      picture(raw / folder / f"{name}.jpg")
      row = dict(image_id=name, image_name=name, image_width=16, set_name=split, caption_id=i)
      texts = {} if split == "test" else dict(caption_str=f'A sign "{i}".', reference_strs=["x"])
      rows.append(row | texts)
    rows += [dict(rows[0], caption_str="")] if split == "val" else []
    write(raw / f"TextCaps_0.1_{split}.json", dict(dataset_type=split, data=rows))


def scicap(raw):
  selections = ("First-Sentence", "Single-Sentence-Caption", "Caption-No-More-Than-100-Tokens")
  for split in ("train", "val", "test"):
    for kind in ("No-Subfig", "Yes-Subfig"):
      names = [f"1001.0025v{i}-Figure{i}-{kind[0]}.png" for i in range(3)]
      for i, name in enumerate(names):
        picture(raw / f"SciCap-{kind}-Img/{split}/{name}", kind="PNG")
        file = {
          "paper-ID": "1001.0025v1",
          "figure-type": "Graph Plot",
          "0-originally-extracted": f"Figure {i}: Réseau, x = {i}.",
          "1-lowercase-and-token-and-remove-figure-index": {
            "caption": f"réseau , x = {i} .",
            "sentence": ["x"],
            "token": ["x"],
          },
          "2-normalized": {
            "2-1-basic-num": {"caption": "réseau , x = NUM .", "sentence": [], "token": []},
            "2-2-advanced-euqation-bracket": {"caption": "EQUATION .", "sentence": [], "token": []},
          },
        }
        write(raw / f"SciCap-Caption-All/{split}/{name[:-4]}.json", file)
      for n, selection in enumerate(selections):
        folder = f"List-of-Files-for-Each-Experiments/{selection}/{kind}/{split}"
        write(raw / folder / "file_idx.json", names[: n + 1])


def screen2words(raw):
  rows = []
  for n, split in enumerate(("train", "dev", "test")):
    screens = [10 * n + i for i in range(3)]
    for screen in screens:
      picture(raw / f"combined/{screen}.jpg", 40, 24)
      rows += [(screen, f'page, of "{screen}" {i}') for i in range(screen % 3 + 1)]
    text = "".join(f"{screen}\n" for screen in screens)
    write(raw / f"screen2words/split/{split}_screens.txt", text)
  table(raw / "screen2words/screen_summaries.csv", ["screenId", "summary"], rows)


def widgetcap(raw):
  rows = []
  for n, split in enumerate(("train", "dev", "test")):
    screens = [str(30_000 + 10 * n + i) for i in range(2)]
    for i, screen in enumerate(screens):
      picture(raw / f"combined/{screen}.jpg", 96, 54)
      leaf = dict(bounds=[7, 84, 1437, 308 + i], text=["x"], **{"class": "android.View"})
      inner = dict(bounds=[0, 0, 1440, 2560], children=[None, leaf])
      root = dict(bounds=[0, 0, 1440, 2560], children=[leaf, inner], ancestors=["x"])
      view = dict(activity_name="a", activity=dict(root=root), is_keyboard_deployed=False)
      write(raw / f"combined/{screen}.json", view)
      rows += [(screen, "0.0", "go back|zurück, bitte"), (screen, "0.1.1", 'say "hi"')]
    write(raw / f"{split}.txt", "\n".join(screens))
  table(raw / "widget_captions.csv", ["screenId", "nodeId", "captions"], rows)


def nlvr2(raw):
  for split, official in dict(train="train", dev="dev", test="test1").items():
    rows = []
    for i in range(4):
      stem = f"{official}-{i // 2}-0"
      inner = f"images/train/{7 + i // 2}" if split == "train" else official
      for side in (0, 1):
        picture(raw / inner / f"{stem}-img{side}.png", kind="PNG")
      row = dict(sentence=f"Two dogs, {i}.", label=str(i % 2 == 0), identifier=f"{stem}-{i % 2}")
      rows.append(row | ({"directory": 7 + i // 2} if split == "train" else {}) | dict(writer="9"))
    lines(raw / f"data/{official}.json", rows)


def marvl(raw, languages=("id", "sw", "ta", "tr", "zh")):
  for language in languages:
    rows = []
    for i in range(2):
      concept = f"{i}-Kürbis"
      for side in (1, 2):
        path = raw / f"marvl-images/{language}/images/{concept}/{i}-{side}.jpg"
        picture(path)
      rows.append(
        dict(
          concept=concept,
          language=language,
          caption=f"{language} 图 {i}",
          left_img=f"{i}-1.jpg",
          right_img=f"{i}-2.jpg",
          annotator_info=dict(age=30),
          chapter="Food",
          id=f"{language}-{i}",
          label=i == 0,
        )
      )
    lines(raw / f"marvl-annotations/marvl-{language}.jsonl", rows)


def ref_coco_bv(raw, images=5, protocol=2):
  """Polygons, run lengths, two objects an image, images of several splits."""
  rng = random.Random(3)
  coco = dict(info={}, licenses=[], images=[], annotations=[], categories=categories())
  for i in range(images):
    name = f"{i * 3 + 1:012d}.jpg"
    height, width = 24 + i, 32
    picture(raw / "train2017" / name, height, width)
    coco["images"].append(
      dict(
        id=i * 3 + 1,
        file_name=name,
        height=height,
        width=width,
        license=1 + i % 8,
        flickr_url=f"flickr/{i}",
        coco_url=f"coco/{i}",
        date_captured="2013-11-14 11:18:45",
      )
    )
    for n in range(3):
      x, y, w, h = (round(rng.uniform(*at), 2) for at in ((0, 12), (0, 9), (2, 18), (2, 12)))
      polygon = [x, y, x + w, y + 0.5, x + w - 0.25, y + h, x + 1, y + h - 1]
      crowd = n == 2
      ones = [5, 7, height * width - 20, 8]
      runs = dict(size=[height, width], counts=ones)
      coco["annotations"].append(
        dict(
          id=2_230_000_000 + 10 * i + n,
          image_id=i * 3 + 1,
          category_id=rng.choice(coco["categories"])["id"],
          area=w * h / 2,
          bbox=[x, y, w, h],
          iscrowd=int(crowd),
          segmentation=runs if crowd else [polygon, [2, 2, 6.5, 2, 6.5, 7.25]][: n + 1],
        )
      )
  write(raw / "annotations/instances_train2017.json", coco)
  splits = {
    "refcocog/refs(umd).p": ("train", "val", "test", "train", "train"),
    "refcoco/refs(unc).p": ("train", "val", "testA", "testB", "train"),
    "refcoco+/refs(unc).p": ("testB", "train", "val", "testA", "train"),
  }
  for number, (name, names) in enumerate(splits.items()):
    refs = []
    for n, annotation in enumerate(coco["annotations"]):
      image = (annotation["image_id"] - 1) // 3
      if n % 3 == number and image % 2:
        continue
      sentences = [
        dict(
          tokens=["the", "lady"],
          raw="The Lady",
          sent_id=1000 * number + 10 * n + i,
          sent=f"the lady, {number} {n} {i} " + ("naïve" if protocol > 0 else "blue"),
        )
        for i in range(n % 3 + 1)
      ]
      refs.append(
        dict(
          sent_ids=[s["sent_id"] for s in sentences],
          file_name=f"COCO_train2014_{annotation['image_id']}_{n}.jpg",
          ann_id=annotation["id"],
          ref_id=n,
          image_id=annotation["image_id"],
          split=names[image % 5],
          sentences=sentences,
          category_id=annotation["category_id"],
        )
      )
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(pickle.dumps(refs, protocol))


MAKERS = dict(
  coco_captions=coco_captions,
  coco35l=coco35l_raw,
  xm3600=xm3600,
  nocaps=nocaps,
  text_caps=text_caps,
  scicap=scicap,
  screen2_words=screen2words,
  widgetcap=widgetcap,
  nlvr2=nlvr2,
  marvl=marvl,
  ref_coco_bv=ref_coco_bv,
)
