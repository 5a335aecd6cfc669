"""What does a data set contain, and what is wrong with it?

One pass over the texts after pp, and one over the images, in threads. Facts are plain numbers for a
report; defects go into a findings.Book. data_check/boxes.py checks boxes and masks.
"""

import collections
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from pgjax.data import image_size, images, loader as loader_lib, locations, notes, pipeline
from pgjax.data_check import boxes as box_check
from pgjax.data_check.findings import Book
from pgjax.errors import UserError
from pgjax.formats import input_files
from pgjax.metrics import structured

COMMONEST = 5
AHEAD = 64  # Prefetched examples.


class CheckedSplit(NamedTuple):
  """One data set of a config, and how the config uses it."""

  name: str  # "training", "evals.val".
  loader: loader_lib.Loader
  answer: str | None  # The column with the true answer, or a list of them; None: boxes and labels.
  max_decode_len: int | None  # Where answers are generated.
  allow_truncated: bool

  @property
  def source(self) -> Any:
    """Raw examples."""
    return self.loader.part.source


class Spread(NamedTuple):
  """The distribution of some numbers."""

  min: float
  median: float
  p99: float
  max: float


class Text(NamedTuple):
  """A prompt and its true answers, if any."""

  prefix: str
  answers: tuple[str, ...]


def spread(numbers: Iterable[float]) -> Spread | None:
  """Their distribution; None without numbers."""
  values = np.asarray(list(numbers))
  if not values.size:
    return None
  at = np.quantile(values, [0, 0.5, 0.99, 1], method="inverted_cdf")
  return Spread(*(n.item() for n in at))


def evenly(total: int, limit: int) -> list[int]:
  """At most `limit` of `total` positions, evenly spaced from the first."""
  count = min(total, limit)
  return [i * total // count for i in range(count)]


def texts(split: CheckedSplit, indices: Sequence[int], book: Book) -> tuple[dict[str, Any], dict]:
  """(facts, {index: Text}): lengths in tokens, frequent values, boxes, JSON."""
  encode = functools.lru_cache(maxsize=1 << 16)(split.loader.tokenizer.encode)
  accepted: dict[int, Text] = {}
  cut: dict[int, str] = {}
  tokens, prompts, answers = [], [], []
  boxes = notes.BoxCounter()
  for i in indices:
    try:
      example, num_tokens, limit = split.loader.texts(i)
      text = text_of(example, split)
    except Exception as error:  # Whatever an op raises, the next example is checked.
      book.add("refused", i, _reason(error))
      continue
    accepted[i] = text
    if has_null(example.get(split.answer, "")):
      book.add("no answer", i, f"prefix {text.prefix[:60]!r}")
    tokens.append(num_tokens)
    prompts.append(len(encode(text.prefix)))
    lengths = [len(encode(answer)) for answer in text.answers]
    answers += lengths
    if num_tokens > limit:
      cut[i] = f"{num_tokens} tokens, {limit} fit"
    if lengths and split.max_decode_len and min(lengths) + 1 > split.max_decode_len:
      needed = f"{min(lengths) + 1} tokens with <eos>, max_decode_len={split.max_decode_len}"
      book.add("answer too long", i, needed)
    # "detect cat" of an image without cats has an empty answer.
    asks_for_boxes = box_check.classes_of(text.prefix) is not None
    if text.answers and not any(map(str.strip, text.answers)) and not asks_for_boxes:
      book.add("empty answer", i, f"prefix {text.prefix[:60]!r}")
    for answer in text.answers:
      box_check.look_at(text.prefix, answer, i, book)
    for kind, detail in notes.of_texts(example | {"prefix": text.prefix}, text.answers):
      book.add(kind, i, detail)
    boxes.add(i, example)
  too_many = not split.allow_truncated and len(cut) > pipeline.MAX_TRUNCATED * len(indices)
  for i, detail in cut.items():
    book.add("too many cut" if too_many else "cut", i, detail)
  _json(accepted, book)
  for sentence in boxes.sentences(split.source.where):
    book.add_to_data("odd boxes", sentence)
  facts = dict(
    looked_at=len(indices),
    tokens=spread(tokens),
    room=split.loader.layout.text_len,
    cut=len(cut),
    prefix_tokens=spread(prompts),
    answer_tokens=spread(answers),
    prefixes=common(text.prefix for text in accepted.values()),
    answers=common(answer for text in accepted.values() for answer in text.answers),
  )
  return facts | box_check.facts(text.answers for text in accepted.values()), accepted


def text_of(example: dict[str, Any], split: CheckedSplit) -> Text:
  """Of an example after pp; decodes its tokens if pp tokenizes."""
  if "prefix" in example:
    if split.answer is None:
      boxes, labels = (example.get(name, ()) for name in ("boxes", "labels"))
      return Text(example["prefix"], (locations.detection_suffix(boxes, labels),))
    return Text(example["prefix"], answers_of(example.get(split.answer)))
  ids, ar = np.asarray(example["text"]), np.asarray(example["mask_ar"])
  decode = split.loader.tokenizer.decode
  answers = answers_of(example.get(split.answer))
  if "mask_loss" in example:
    answers = (decode(ids[np.asarray(example["mask_loss"]) != 0]),)
  return Text(decode(ids[ar == 0]).removesuffix("\n"), answers)


def answers_of(value: Any) -> tuple[str, ...]:
  """From a column with an answer, a list of answers, or None; without those that are null."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  many = value if isinstance(value, list | tuple) else [value]
  return tuple(str(answer) for answer in many if answer is not None)


def has_null(value: Any) -> bool:
  """Whether an answer, or one of several, is null."""
  return value is None or (isinstance(value, list | tuple) and None in value)


def _reason(error: Exception) -> str:
  text = " ".join(str(error).split())
  return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _json(accepted: dict[int, Text], book: Book) -> None:
  """If more than half of the answers are objects or lists, adds the others to the book."""
  given = {i: t.answers[0] for i, t in accepted.items() if t.answers and t.answers[0].strip()}
  if not any(answer.lstrip()[:1] in ("{", "[") for answer in given.values()):
    return
  broken = {i: a for i, a in given.items() if not isinstance(structured.parsed(a), dict | list)}
  if len(broken) < len(given) / 2:
    for i, answer in broken.items():
      book.add("not JSON", i, repr(answer[:80]))


def common(values: Iterable[str]) -> dict[str, Any]:
  """Their number, the number of different ones, and the most frequent with counts."""
  counts = collections.Counter(values)
  return dict(number=counts.total(), different=len(counts), commonest=counts.most_common(COMMONEST))


def columns(split: CheckedSplit, indices: Sequence[int], book: Book) -> dict[str, dict[str, int]]:
  """{column: {type: rows}} of the raw examples, before pp."""
  types: dict[str, dict[int, str]] = {}
  first: dict[Any, int] = {}
  predicted = split.name.startswith("evals.")
  for i in indices:
    try:
      example = split.source.texts(i)
    except ValueError:  # Reported by `texts`.
      continue
    own = example.get("id")
    if predicted and isinstance(own, int | str) and (k := first.setdefault(own, i)) != i:
      book.add("repeated id", i, f"id {own!r}, as {split.source.where(k)}")
    for name, value in example.items():
      if name.startswith("_"):
        continue
      types.setdefault(name, {})[i] = type_name(value)
  counted = {name: dict(collections.Counter(of.values())) for name, of in types.items()}
  for name, of in types.items():
    usual = max(counted[name], key=lambda t: counted[name][t] * (t != "null"))
    for i, kind in of.items():
      if kind not in (usual, "null", "empty list") and usual != "empty list":
        book.add("mixed types", i, f"{name} is {kind}, not {usual}")
  return counted


def type_name(value: Any) -> str:
  """In JSON's terms: text, number, true/false, list of ..., object, null."""
  if isinstance(value, np.ndarray):
    return f"array of {value.dtype}"
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, list | tuple):
    inner = {type_name(one) for one in value}
    if not inner:
      return "empty list"
    return f"list of {inner.pop() if len(inner) == 1 else 'several types'}"
  names = {str: "text", int: "number", float: "number", bool: "true/false", dict: "object"}
  return "null" if value is None else names.get(type(value), type(value).__name__)


class Picture(NamedTuple):
  """One readable image; `fault` is why it cannot be decoded."""

  size: tuple[int, int] | None
  rotated: bool
  fault: str
  flat: bool = False
  dim: bool = False


def pictures(
  split: CheckedSplit, indices: Sequence[int], num_threads: int, book: Book
) -> tuple[dict[str, Any], dict[int, str]]:
  """(facts, {index: digest of the example's images}); each image is decoded once."""
  known: dict[str, Picture] = {}
  digests: dict[int, str] = {}
  of_example: list[int] = []
  for i, read in _read(split.source, indices, known, num_threads):
    if read.unreadable:
      book.add("unreadable image", i, read.unreadable)
      continue
    if read.wrong_size:
      book.add("wrong size", i, read.wrong_size)
    elif read.is_scaled:
      book.add("scaled size", i)
    digests[i] = "+".join(read.digests)
    of_example.append(len(read.digests))
    for digest in read.digests:
      if known[digest].fault:
        book.add("damaged image", i, known[digest].fault)
        continue
      if known[digest].rotated:
        book.add("rotated image", i)
      if known[digest].flat:
        book.add("flat image", i)
      if known[digest].dim:
        book.add("dim image", i)
  sizes = [picture.size for picture in known.values() if picture.size]
  facts = dict(
    looked_at=len(indices),
    read=sum(of_example),
    different=len(known),
    height=spread(height for height, _ in sizes),
    width=spread(width for _, width in sizes),
    per_example=spread(of_example),
  )
  return facts, digests


class _Images(NamedTuple):
  """The images of one example."""

  digests: Sequence[str] = ()
  unreadable: str = ""  # Why they cannot be read.
  wrong_size: str = ""
  is_scaled: bool = False


def _read(source, indices, known, num_threads) -> Iterator[tuple[int, _Images]]:
  """(index, its images), in order, prefetched."""

  def read(i):
    try:
      example = source[i]
      images_of = example["image"] if "image" in example else _of_other_names(example)
    except input_files.StalledError:
      raise
    except Exception as error:  # Reported with file and line; the next one is read.
      missing = isinstance(error, KeyError)
      return _Images(unreadable="there is no column 'image'" if missing else _reason(error))
    several = isinstance(images_of, list | tuple)
    digests = [_look_into(image, known) for image in (images_of if several else [images_of])]
    if any(known[digest].fault for digest in digests):
      return _Images(digests)
    try:
      return _Images(digests, is_scaled=image_size.check(example) == "scaled")
    except UserError as error:
      return _Images(digests, wrong_size=str(error))

  pool = futures.ThreadPoolExecutor(num_threads)
  try:
    submitted = ((i, pool.submit(read, i)) for i in indices)
    pending = collections.deque(itertools.islice(submitted, AHEAD))
    while pending:
      i, future = pending.popleft()
      yield i, future.result()
      pending.extend(itertools.islice(submitted, 1))
  finally:  # After an error or Ctrl-C no further image is read.
    pool.shutdown(wait=False, cancel_futures=True)


def _of_other_names(example) -> list[np.ndarray]:
  """The decoded images of an example without `image`, as of pairs (data/sources/tfds.py)."""
  arrays = [value for value in example.values() if isinstance(value, np.ndarray)]
  found = [value for value in arrays if value.ndim == 3 and value.dtype == np.uint8]
  if not found:
    raise KeyError("image")
  return found


def _look_into(image, known) -> str:
  """The image's digest; adds its Picture to `known`."""
  if not isinstance(image, bytes):  # Decoded, as the videos of TFDS.
    image = np.asarray(image)
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    known.setdefault(digest, Picture(tuple(image.shape[-3:-1]), rotated=False, fault=""))
    return digest
  digest = hashlib.sha256(image).hexdigest()
  if digest not in known:
    try:
      pixels = images.decode(image)
      shown = dict(flat=images.is_flat(pixels), dim=images.is_dim(image, pixels))
      known[digest] = Picture(pixels.shape[:2], images.is_rotated(image), "", **shown)
    except ValueError as error:
      known[digest] = Picture(None, rotated=False, fault=str(error))
  return digest
