"""TextCaps (arXiv:2003.12462): captions that need the text in an image.

  DIR/TextCaps_0.1_{train,val,test}.json   DIR/train_images/*.jpg   DIR/test_images/*.jpg

The images of val are in train_images. The captions of test are not public.
"""

import msgspec

from pgjax.datasets import base


class _Row(msgspec.Struct):
  image_id: base.Name
  image_name: base.Name
  caption_str: str | None = None


class _File(msgspec.Struct):
  data: list[_Row]


def _file(split: str) -> str:
  return f"TextCaps_0.1_{split}.json"


def _folder(split: str) -> str:
  return "test_images" if split == "test" else "train_images"


def _rows(raw: base.Raw, part: None, split: str):
  name, folder = _file(split), _folder(split)
  images: dict[str, tuple[str, str, list[str]]] = {}
  for i, row in enumerate(raw.json(name, _File).data):
    where = f"{name}, data, entry {i}"
    first, _, texts = images.setdefault(row.image_id, (row.image_name, where, []))
    raw.check(first == row.image_name, where, f"the image has two names, {first} and another")
    if row.caption_str:
      texts.append(row.caption_str)
  for image_id, (image_name, where, texts) in images.items():
    yield (
      image_id,
      {
        "image/id": image_id,
        "image_filepath": f"{folder}/{image_name}.jpg",
        "image": raw.image(folder, f"{image_name}.jpg", f"{where}: image_name"),
        "texts": texts,
      },
    )


DATA = base.DataSet(
  name="text_caps",
  about="captions that need the text in an image (TextCaps)",
  source="textvqa.org/textcaps (the JSON files, train_val_images.zip, test_images.zip)",
  features={"image/id": str, "image_filepath": str, "image": base.Image("jpeg"), "texts": [str]},
  splits={"train": 21_953, "val": 3_166, "test": 3_289},
  files=lambda part, split: [_file(split), f"{_folder(split)}/"],
  rows=_rows,
)
