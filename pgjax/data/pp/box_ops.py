"""Which ops write answers from boxes and masks? Factories, as in parse.py.

Boxes in an example are y0, x0, y1, x1 as shares of the image unless `format` names another order.
"""

from typing import Annotated, Literal

import numpy as np

from pgjax.call_syntax import Between
from pgjax.data import images, locations, mask_tokens, noise_boxes
from pgjax.data.pp import text_ops
from pgjax.data.pp.text_ops import Name
from pgjax.errors import UserError

_Format = Literal[locations.FORMATS]
_Order = Literal["given", "random", "area", "position"]


def boxes_to_suffix(
  format: _Format = "normalised",
  *,
  boxes: Name = "boxes",
  labels: Name = "labels",
  order: _Order = "given",
  num_boxes: Annotated[int, Between(1, 10_000)] | None = None,
  outkey: Name = "suffix",
):
  """"<loc..> cat ; <loc..> dog", and `boxes` become normalised.

  Boxes in pixels ("coco", "voc") need the columns width and height. `order`: "given", "random"
  (a new one each time), "area" (largest first), "position" (from the top, then from the left).
  With `num_boxes` every answer has as many: the first ones, then noise boxes, whose locations are
  not learned (noise_boxes.py).
  """  # fmt: skip

  def apply(example):
    values = _normalised(example, boxes, format)
    objects = _ordered(example, order, values, _as_list(example, labels, len(values)))
    added = _seen(example, values) | {boxes: values}
    if num_boxes is not None:
      added |= _fill(example, *objects, num_boxes)
    return example | added | {outkey: locations.detection_suffix(*objects)}

  return apply


def suffix_to_boxes(*, inkey: Name = "suffix", boxes: Name = "boxes", labels: Name = "labels"):
  """Reads normalised `boxes` and `labels` from "<loc..> cat ; <loc..> dog", to score or reorder."""

  def apply(example):
    text = example[inkey]
    parsed = locations.parse(text) if isinstance(text, str) else None
    if parsed is None or parsed.malformed or any(o.codes for o in parsed.objects):
      raise UserError(
        f"suffix_to_boxes reads four <loc> up to <loc{locations.BINS - 1}> and a label for each"
        f" object, with ; between them, and '{inkey}' is {text!r:.200}"
      )
    objects = parsed.objects
    return example | {boxes: [list(o.box) for o in objects], labels: [o.label for o in objects]}

  return apply


def image_size(key: Name = "image"):
  """Sets `width` and `height` of the encoded image where the data has none; before decode."""

  def apply(example):
    if not isinstance(example[key], bytes):
      raise UserError(
        f"image_size reads encoded bytes, and '{key}' is decoded; put it before decode"
      )
    if example.get("width") and example.get("height"):
      return example
    width, height = images.size(example[key])
    return example | dict(width=width, height=height)

  return apply


def masks_to_suffix(
  model: Name = "oi",
  *,
  boxes: Name = "boxes",
  labels: Name | None = "labels",
  segmentations: Name = "segmentations",
  order: _Order = "given",
  outkey: Name = "suffix",
):
  """ "<loc..><seg..> cat ; <loc..><seg..> dog", from normalised boxes and COCO's segmentations.

  Needs the columns width and height. labels=None omits them, as in RefCOCO. `model` is "oi" or an
  .npz file (formats/seg_vae_npz.py).
  """
  encoder = mask_tokens.load(model)

  def apply(example):
    values = _normalised(example, boxes, "normalised")
    outlines = _as_list(example, segmentations, len(values))
    names = [_as_list(example, labels, len(values))] if labels else []
    for i, outline in enumerate(outlines):
      if outline is None:
        raise UserError(
          f"object {i} has a box and no segmentation; draw its outline, remove it, or take"
          " boxes_to_suffix"
        )
    size = (example["height"], example["width"])
    codes = encoder.of_objects(outlines, values, *size, example.get("_folder"))
    objects = _ordered(example, order, values, codes, *names)
    seen = _seen(example, values)
    return example | seen | {outkey: locations.segmentation_suffix(*objects)}

  return apply


def refcoco_mask2str(model: Name = "oi"):
  """As in big_vision: prefix is the sentence, suffix four <loc> and sixteen <seg>, no label."""
  encoder = mask_tokens.load(model)

  def apply(example):
    box = np.asarray(example["objects/bbox"], np.float32)
    mask = np.asarray(example["objects/mask"])
    if box.shape != (4,) or mask.ndim != 3 or mask.dtype != np.uint8:
      raise UserError(
        f"refcoco_mask2str takes one object: a box is {box.shape}, not (4,), or a mask is"
        f" {mask.dtype} {mask.shape}, not uint8 [H, W, C]; choose one before"
      )
    suffix = locations.loc_string(box) + locations.seg_string(encoder.of_object(mask[:, :, 0], box))
    return example | {"prefix": example["objects/refs/sentence"], "suffix": suffix}

  return apply


def flip_boxes_lr(
  probability: Annotated[float, Between(0, 1)] = 0.5, *, key: Name = "image", boxes: Name = "boxes"
):
  """Mirrors the image and its normalised boxes together; the op for the suffix goes after it."""

  def apply(example):
    if text_ops.example_rng(example).random() < probability:
      across = np.arange(example[key].shape[1])[::-1]
      example[key] = example[key].take(across, axis=1)
      example[boxes] = [[y0, 1 - x1, y1, 1 - x0] for y0, x0, y1, x1 in example[boxes]]
      for stale in ("segmentations", "suffix", "crowd_boxes"):
        example.pop(stale, None)
    return example

  return apply


def draw_bbox(image_key: Name = "image", bbox_key: Name = "bbox"):
  """Draws a red box one pixel wide, float32 from 0 to 255, before value_range (big_vision)."""

  def apply(example):
    image = np.array(example[image_key], np.float32)
    box = np.asarray(example[bbox_key], np.float32)
    if box.shape != (4,):
      raise UserError(f"draw_bbox draws one box of four numbers, '{bbox_key}' is {box.shape}")
    height, width = image.shape[:2]
    scale = np.array([height - 1, width - 1] * 2, np.float32)
    y0, x0, y1, x1 = (int(n) for n in box * scale)  # Truncated, as in TensorFlow.
    if y0 > y1 or x0 > x1 or y0 >= height or x0 >= width or y1 < 0 or x1 < 0:
      return example | {image_key: image}  # Inverted or outside: TensorFlow does not draw it.
    rows = slice(max(0, y0), min(height - 1, y1) + 1)
    columns = slice(max(0, x0), min(width - 1, x1) + 1)
    for y in (y0, y1):
      if 0 <= y < height:
        image[y, columns] = (255, 0, 0)
    for x in (x0, x1):
      if 0 <= x < width:
        image[rows, x] = (255, 0, 0)
    return example | {image_key: image}

  return apply


def _seen(example, boxes):
  """For data/notes.py, after `keep` dropped the columns."""
  return dict(_boxes=boxes, _size=(example.get("height"), example.get("width")))


def _fill(example, boxes, labels, num_boxes):
  """Makes both lists `num_boxes` long; returns what loader.py and notes.py read."""
  if noise_boxes.NOISE in labels:
    raise UserError(f"an object is labelled {noise_boxes.NOISE!r}, which num_boxes= uses itself")
  real, num_left_out = len(boxes[:num_boxes]), len(boxes[num_boxes:])
  noise = noise_boxes.sample(boxes, num_boxes - real, text_ops.example_rng(example))
  boxes[real:], labels[real:] = noise, [noise_boxes.NOISE] * len(noise)
  return dict(_learned_locs=4 * real, _boxes_left_out=num_left_out)


def _normalised(example, name, format):
  size = dict(width=example.get("width"), height=example.get("height"))
  return [list(locations.to_normalised(box, format, **size)) for box in example[name]]


def _as_list(example, name, count):
  values = example[name]
  if not isinstance(values, list | tuple) or len(values) != count:
    raise UserError(f"'{name}' must be a list, one for each of {count} boxes, not {values!r}")
  return values


def _ordered(example, order, boxes, *columns):
  indices = list(range(len(boxes)))
  if order == "random":
    text_ops.example_rng(example).shuffle(indices)
  elif order == "area":
    indices.sort(key=lambda i: -locations.area(boxes[i]))
  elif order == "position":
    indices.sort(key=lambda i: (boxes[i][0], boxes[i][1]))
  return [[column[i] for i in indices] for column in (boxes, *columns)]


OPS = (
  draw_bbox,
  flip_boxes_lr,
  image_size,
  boxes_to_suffix,
  suffix_to_boxes,
  masks_to_suffix,
  refcoco_mask2str,
)
