import json
import logging
import pathlib

import numpy as np
import pytest
from PIL import Image

from pgjax.data import locations
from pgjax.data.sources import coco, registry
from pgjax.errors import UserError

SHARED = pathlib.Path(__file__).resolve().parents[4] / "shared/data/bccd"


def content():
  """Two images of 200 x 100, three boxes in the first."""
  image = lambda i: dict(id=10 + i, file_name=f"images/{i}.png", width=200, height=100)  # noqa: E731
  box = lambda i, category, box, **more: dict(  # noqa: E731
    id=i, image_id=10, category_id=category, bbox=box, area=7, iscrowd=0, **more
  )
  return dict(
    images=[image(0), image(1)],
    categories=[
      dict(id=0, name="animals", supercategory="none"),
      dict(id=1, name="cat", supercategory="animals"),
      dict(id=5, name="guinea pig", supercategory="animals"),
      dict(id=6, name="dog", supercategory="animals"),
    ],
    annotations=[
      box(1, 5, [20, 10, 100, 50], segmentation=[[20, 10, 120, 10, 120, 60]]),
      box(2, 1, [0, 0, 200, 100]),
      box(3, 1, [5, 5, 0, 9]),
    ],
  )


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images").mkdir()
  for i in range(2):
    Image.fromarray(np.full((100, 200, 3), 9 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
  return tmp_path


def opened(folder, changed=None, **more):
  (folder / "train.json").write_text(json.dumps(content() if changed is None else changed))
  return registry.open(dict(name="coco", fname=str(folder / "train.json"), **more))


def test_a_coco_file_gives_prompt_and_answer(folder, caplog):
  with caplog.at_level(logging.WARNING):
    source = opened(folder)
  assert len(source) == 2
  first = source[0]
  assert first["image"] == (folder / "images/0.png").read_bytes()
  assert first["prefix"] == "detect cat ; guinea pig ; dog"
  whole = "<loc0000><loc0000><loc1023><loc1023> cat"
  assert first["suffix"] == f"<loc0102><loc0102><loc0614><loc0614> guinea pig ; {whole}"
  assert first["boxes"] == [[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]]
  assert first["labels"] == ["guinea pig", "cat"]
  assert first["areas"] == [7, 7]
  assert first["segmentations"] == [[[20, 10, 120, 10, 120, 60]], None]
  facts = {name: first[name] for name in ("id", "image_id", "file_name", "width", "height")}
  assert facts == dict(id="10", image_id=10, file_name="images/0.png", width=200, height=100)
  assert first["classes"] == "cat ; guinea pig ; dog"
  assert source.where(1) == f"{folder}/train.json, image 11 (images/1.png)"
  assert source.dropped == {"without area": 1}
  assert "train.json: 2 boxes; omitted: 1 without area." in caplog.text


def test_an_image_without_objects_has_an_empty_answer(folder):
  assert opened(folder)[1]["suffix"] == ""


def test_texts_do_not_read_the_image(folder):
  source = opened(folder)
  with_image = source[0]
  del with_image["image"]
  assert source.texts(0) == with_image


def test_the_prompt_has_the_given_classes_in_order_and_others_are_counted(folder):
  source = opened(folder, classes=["dog", "cat"])
  assert source[0]["prefix"] == "detect dog ; cat"
  assert source[0]["labels"] == ["cat"]
  assert source.dropped == {"of other classes": 1, "without area": 1}
  assert opened(folder, classes="cat").classes == ("cat",)


def test_a_group_is_a_class_only_if_something_is_annotated_with_it(folder):
  changed = content()
  changed["annotations"][0]["category_id"] = 0
  assert opened(folder, changed).classes == ("animals", "cat", "guinea pig", "dog")
  for category in changed["categories"]:
    del category["supercategory"]
  changed["annotations"] = []
  assert opened(folder, changed).classes == ("animals", "cat", "guinea pig", "dog")


def test_crowds_are_not_objects(folder):
  changed = content()
  changed["annotations"][1]["iscrowd"] = 1
  first = opened(folder, changed)[0]
  assert first["labels"] == ["guinea pig"]
  assert (first["crowd_boxes"], first["crowd_labels"]) == ([[0, 0, 1, 1]], ["cat"])


def test_images_may_be_elsewhere_and_rows_selected(folder):
  changed = content()
  for entry in changed["images"]:
    entry["file_name"] = entry["file_name"].removeprefix("images/")
  source = opened(folder, changed, images=str(folder / "images"), start=1, stop=2)
  assert [source[i]["file_name"] for i in range(len(source))] == ["1.png"]
  with pytest.raises(UserError, match="has no images from 5 to None"):
    opened(folder, start=5)


def test_every_box_with_area_of_bccd_is_read_back():
  if not SHARED.exists():
    pytest.skip(f"{SHARED} is missing")
  source = coco.Coco(str(SHARED / "valid/_annotations.coco.json"))
  assert (len(source), source.dropped) == (87, {"without area": 1})
  total = 0
  for i in range(len(source)):
    row = source.texts(i)
    parsed = locations.parse(row["suffix"])
    assert parsed.malformed == 0
    assert [o.label for o in parsed.objects] == row["labels"]
    off = np.abs(np.array([o.box for o in parsed.objects]) - np.array(row["boxes"]))
    assert off.max() < 0.5001 / 1023
    total += len(parsed.objects)
  assert total == 1137


def with_change(part, index, **fields):
  def change(c):
    c[part][index].update(fields)

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.pop("images"), r"train.json: \$ is .*missing required field `images`"),
    (lambda c: c.update(annotations=[3]), r"\$.annotations\[0\] is 3; expected `object`"),
    (lambda c: c.update(images=[]), "image_id|there is no image"),
    (with_change("annotations", 0, category_id=9), r"\$.annotations\[0\]: there is no category 9"),
    (with_change("annotations", 0, image_id=9), r"\$.annotations\[0\]: there is no image 9"),
    (
      with_change("annotations", 0, bbox=[1, 2, 3]),
      r"\$.annotations\[0\].bbox is \[1, 2, 3\]; expected `array` of length 4",
    ),
    (
      with_change("annotations", 0, bbox=[1, 2, 3, "4"]),
      r'\$.annotations\[0\].bbox\[3\] is "4"; expected',
    ),
    (with_change("annotations", 1, bbox=None), r"annotations\[1\]: .* no bbox and no segmentation"),
    (with_change("annotations", 1, bbox=[]), r"annotations\[1\]: .* no bbox and no segmentation"),
    (with_change("annotations", 1, bbox=[], segmentation=[[]]), "no bbox and no segmentation"),
    (with_change("annotations", 1, bbox=[], segmentation=[[1, 2]]), "at least three points"),
    (
      with_change("annotations", 1, bbox=[], segmentation={"counts": [5]}),
      "run lengths need a size",
    ),
    (with_change("images", 0, width=64.5), r"\$.images\[0\].width is 64.5; it must be a whole"),
    (with_change("images", 0, width=-3), "width is -3; it must be a whole number"),
    (with_change("images", 0, width="64"), r"\$.images\[0\].width is "),
    (
      with_change("images", 1, id=10),
      r"\(images/1.png\) and .* \(images/0.png\) have the same id 10",
    ),
    (with_change("images", 1, id="10"), "have the same id"),
    (with_change("images", 1, file_name="images/./0.png"), "images 10 and 11 are the same file"),
    (
      with_change("categories", 3, id=5),
      r"categories\[3\]: 'guinea pig' and 'dog' have the same id",
    ),
    (with_change("categories", 3, id="5"), "have the same id"),
    (lambda c: c.update(categories=[], annotations=[]), "has no classes"),
    (lambda c: c.pop("categories"), "no category 5, .*0.png has; the categories are: none"),
    (with_change("images", 0, width=10**9), "up to 89,478,485 pixels"),
    (with_change("images", 0, file_name=3), r"\$.images\[0\].file_name is 3"),
    (with_change("images", 0, file_name="../x.png"), r"is outside of .* or set images= to"),
    (with_change("images", 0, file_name="/etc/hostname"), "is outside of"),
    (with_change("images", 0, file_name="images/9.png"), "image 'images/9.png' is not in"),
    (with_change("categories", 1, name="a;b"), "label 'a;b' cannot be in an answer"),
    (
      lambda c: c["categories"][1].pop("name"),
      r"\$.categories\[1\] is .*missing required field `name`",
    ),
  ],
)
def test_a_damaged_file_raises(folder, change, message):
  changed = content()
  change(changed)
  with pytest.raises(UserError, match=message):
    opened(folder, changed)


def test_invalid_json_and_unknown_classes_raise(folder):
  with pytest.raises(UserError, match=r"has no class \['mouse'\]; it has \['animals', 'cat'"):
    opened(folder, classes=["cat", "mouse"])
  (folder / "bad.json").write_text("{")
  with pytest.raises(UserError, match=r"bad.json: not JSON"):
    registry.open(dict(name="coco", fname=str(folder / "bad.json")))
  with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
    registry.open(dict(name="coco", fname=str(folder / "none.json")))
  with pytest.raises(UserError, match="missing a required argument: 'fname'; its fields are fname"):
    registry.open(dict(name="coco", split="train"))


def test_what_has_one_meaning_is_accepted(folder):
  changed = content()
  changed["images"][0].update(width=200.0, height=100.0)
  changed["images"][1].update(width=0, height=None)
  changed["categories"][1].update(id="1", name=7, supercategory=3)
  changed["categories"][3]["name"] = "猫 🐶"
  changed["annotations"][0].update(category_id=5.0, image_id="10")
  changed["annotations"][1].update(category_id=1, iscrowd=None, segmentation=[[]])
  source = opened(folder, changed)
  first, second = source[0], source[1]
  assert first["prefix"] == "detect 7 ; guinea pig ; 猫 🐶"
  assert first["labels"] == ["guinea pig", "7"]
  assert first["segmentations"][1] is None
  assert (first["width"], second["width"], second["height"]) == (200, 200, 100)
  assert [type(first[name]) for name in ("width", "height")] == [int, int]


def test_sizes_that_the_file_omits_are_those_of_the_image(folder):
  changed = content()
  for entry in changed["images"]:
    del entry["width"], entry["height"]
  assert opened(folder, changed)[0]["boxes"][0] == [0.1, 0.1, 0.6, 0.6]
  (folder / "images/1.png").unlink()
  with pytest.raises(UserError, match=r"image 11 .*width and height.* unknown: .*cannot be read"):
    opened(folder, changed)


def test_a_missing_bbox_is_that_of_the_outline(folder):
  outline = [20, 10, 120, 10, 120, 60]
  runs = dict(size=[100, 200], counts=[2010, 50, 17940])  # Column 20, rows 10 to 60.
  for segmentation, box in (
    ([outline], [0.1, 0.1, 0.6, 0.6]),
    (outline, [0.1, 0.1, 0.6, 0.6]),
    ([outline, [0, 0, 10, 0, 10, 5]], [0, 0, 0.6, 0.6]),
    (runs, [0.1, 0.1, 0.6, 0.105]),
  ):
    changed = content()
    changed["annotations"][0].update(bbox=[], segmentation=segmentation, area=None)
    first = opened(folder, changed)[0]
    np.testing.assert_allclose(first["boxes"][0], box)
    assert first["segmentations"][0] == segmentation
    area = (box[2] - box[0]) * (box[3] - box[1]) * 20_000
    np.testing.assert_allclose(first["areas"][0], area)


def test_a_category_that_is_its_own_group_is_a_class(folder):
  changed = content()
  for category in changed["categories"]:
    category["supercategory"] = category["name"]
  changed["annotations"] = []
  assert opened(folder, changed).classes == ("animals", "cat", "guinea pig", "dog")


def test_one_name_of_several_categories_is_one_class_and_reported(folder, caplog):
  changed = content()
  changed["categories"].append(dict(id=9, name=" guinea  pig"))
  assert opened(folder, changed).notes == []  # No object has it.
  changed["annotations"][1]["category_id"] = 9
  source = opened(folder, changed)
  assert source[0]["labels"] == ["guinea pig", "guinea pig"]
  assert source.classes == ("cat", "guinea pig", "dog")
  assert "'guinea pig' is the name of several categories" in caplog.text


def test_identical_entries_of_a_category_and_of_a_file_are_accepted(folder):
  changed = content()
  changed["categories"].append(changed["categories"][1])
  changed["images"][1]["file_name"] = "images/0.png"
  changed["annotations"] += [dict(a, image_id=11) for a in changed["annotations"]]
  assert opened(folder, changed)[1]["labels"] == ["guinea pig", "cat"]


def test_classes_come_from_the_training_file(folder, caplog):
  (folder / "first.json").write_text(json.dumps(content()))
  changed = content()
  changed["categories"] = [dict(id=3, name="dog"), dict(id=1, name="cat"), dict(id=5, name="cow")]
  source = opened(folder, changed, classes_from=str(folder / "first.json"))
  assert source[0]["prefix"] == "detect cat ; guinea pig ; dog"
  assert source[0]["labels"] == ["cat"]
  assert source.dropped == {"of other classes": 1, "without area": 1}
  assert "omitted: 1 of other classes (cow), 1 without area." in caplog.text
  source = opened(folder, changed, classes_from=str(folder / "first.json"), classes=["guinea pig"])
  assert source.classes == ("guinea pig",)
  with pytest.raises(
    UserError, match=r"no.json cannot be read: No such .*classes=\[...\] needs no f"
  ):
    opened(folder, changed, classes_from=str(folder / "no.json"))
  assert opened(folder, changed, classes_from="no.json", classes="cat").classes == ("cat",)


def test_a_class_that_no_answer_can_name_may_be_left_out(folder):
  changed = content()
  changed["categories"][3]["name"] = "nuts; bolts"
  with pytest.raises(UserError, match=r"'nuts; bolts' cannot be in an answer.*leave it out with c"):
    opened(folder, changed)
  assert opened(folder, changed, classes=["cat"]).classes == ("cat",)
