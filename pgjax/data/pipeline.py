"""Which examples are in the batch of step s, and how does it get to the device in time?

The batch (B rows; a process holds its own rows, in the order of the global batch):

  key          shape, dtype                     meaning
  image        float32 [B, H, W, 3]             in [-1, 1]; with num_frames: [B, N, H, W, 3]
  image_mask   bool [B, N]                      only with num_frames; False: this image is padding
  text         int32 [B, T+1] | [B, T]          training | evaluation; see data/prefix_lm.py
  mask_ar      int32, like text                 0: prefix and newline; 1: suffix and padding
  mask_loss    int32, like text                 1: learned (training and perplexity)
  mask_input   int32, like text                 1: a real token (evaluation)
  _mask        bool [B]                         False: the row only fills the batch (evaluation)
  _index       int32 [B]                        which example of the split (evaluation)

Training data is, in this order: each data set in an order of its own for each epoch (so epochs do
not mix), repeated for ever, preprocessed, mixed by weight, batched. Example g of this endless
stream is a function of (seed, g) alone, and step s takes g = s*B ... s*B + B-1, so a run resumes at
any step without replay, on any number of processes. Random ops draw from (seed, data set, example,
epoch). Threads do the work (numpy and Pillow release the GIL); processes are an option.

How one example becomes a row of the batch is in data/loader.py.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from pgjax.data import loader as loader_lib
from pgjax.data.loader import Layout, LoadedRow, Loader
from pgjax.data.sources import registry
from pgjax.errors import UserError

MAX_SCANNED = 10_000  # Texts looked at before a run; 1% of them is told to +-0.1%.
MAX_TRUNCATED = 0.01
WHOLE_BATCH_BYTES = 32 << 20  # A batch beyond this is made by several threads, piece by piece.


def parts(data, *, check_images: bool = True) -> list[loader_lib.Part]:
  """Opens dict(name=..., split=...), or {name: weight, ...} with split and data_dir beside them.

  In a mixture a value may also be a dict, of a weight and of the source's own fields. Weights are
  relative; a data set of weight 0 is left out.
  """
  data = _plain(data)
  if isinstance(data.get("name"), str):
    return [loader_lib.Part(data["name"], registry.open(data, check_images=check_images), 1.0)]
  shared = {key: data.pop(key) for key in ("split", "data_dir", "root") if key in data}
  opened = []
  for name, value in data.items():
    own = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = own.pop("weight", None)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
      raise UserError(f"data['{name}'] needs a weight, a number >= 0, not {weight!r}.")
    if weight:
      spec = {"name": name, **shared, **own}
      opened.append(loader_lib.Part(name, registry.open(spec, check_images=check_images), weight))
  if not opened:
    raise UserError(f"data={data!r} names no data set with a positive weight.")
  return opened


def _plain(section) -> dict:
  return section.to_dict() if hasattr(section, "to_dict") else dict(section)


class Scan(NamedTuple):
  """What a look at the texts of one data set found."""

  name: str
  seen: int
  truncated: int
  longest: int  # The text_len that the longest text needs.


def scan(loaders, *, allow_truncated: bool) -> list[Scan]:
  """Counts texts over text_len, without images; above 1% is an error unless it is allowed."""
  found = []
  for loader in loaders:
    name, total, text_len = loader.part.name, len(loader.part.source), loader.layout.text_len
    seen = min(total, MAX_SCANNED)
    lengths = [loader.num_tokens(i * total // seen) for i in range(seen)]
    truncated = sum(tokens > room for tokens, room in lengths)
    longest = max(tokens - room + text_len for tokens, room in lengths)
    if truncated > MAX_TRUNCATED * seen and not allow_truncated:
      raise UserError(
        f"{truncated:,} of {seen:,} texts of '{name}' ({truncated / seen:.1%}) are longer than "
        f"text_len={text_len} and would lose their end; the longest needs text_len={longest}. Set "
        "that, or input.allow_truncated=True."
      )
    found.append(Scan(name, seen, truncated, longest))
  return found


class TrainBatches:
  """Endless host batches of this process, from `start_step` on; see the top of the file.

  Attributes:
    num_examples: of one epoch, over all data sets.
    step: whose batch comes next; the whole position in the data.
    scans: what the look at the texts found, one Scan a data set.
  """

  def __init__(self, make_stream, num_examples: int, scans: list[Scan], start_step: int):
    """Made by train_batches."""
    self.num_examples, self.scans, self.step = num_examples, scans, start_step
    self._make_stream, self._stream = make_stream, make_stream(start_step)
    self._seen = self._truncated = 0

  def at(self, step: int) -> "TrainBatches":
    """The same data from another step on, without opening it again."""
    return TrainBatches(self._make_stream, self.num_examples, self.scans, step)

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch, _, truncated = next(self._stream)
    self.step += 1
    self._seen += len(truncated)
    self._truncated += int(truncated.sum())
    return batch

  def stats(self) -> dict[str, int]:
    """Examples of this process given out so far, and how many of them had a cut text."""
    return dict(examples=self._seen, truncated=self._truncated)


def train_batches(
  config, tokenizer, *, process_index: int = 0, process_count: int = 1, start_step: int = 0
) -> TrainBatches:
  """The batches of a run; all that can be known to be wrong with its data is told here."""
  section, batch_size = config.input, config.input.batch_size
  local = _local_size(batch_size, process_count)
  layout = Layout(config.res, config.text_len, config.num_frames, for_training=True)
  opened = parts(section.data)
  cache_bytes = section.cache_mb << 20
  loaders = [Loader(p, section.pp, tokenizer, layout, config.seed, cache_bytes) for p in opened]
  scans = scan(loaders, allow_truncated=section.allow_truncated)
  mixed = mixture(loaders, config.seed)

  def make_stream(first_step):
    def row(j):
      step, i = divmod(j, local)
      return mixed[(first_step + step) * batch_size + process_index * local + i]

    # Half of what fits: Grain rounds the number of pieces of one row up to a power of two.
    rows = grain.MapDataset.range(sys.maxsize // 2 // local * local).map(row)
    return iter(_batched(rows, local, layout, section.num_threads, section.num_workers))

  return TrainBatches(make_stream, sum(len(p.source) for p in opened), scans, start_step)


class EvalBatch(NamedTuple):
  """One batch of an evaluation, and what stays on the host."""

  arrays: dict[str, np.ndarray]
  rows: list[dict]  # Of the real rows alone: id, prefix, answer ..., and _sha256 of the arrays.


class EvalBatches:
  """A whole split, once each time that it is iterated over; all processes make `len` batches.

  The last batch is filled up with copies of the last example, whose `_mask` is False.
  """

  def __init__(self, make_stream, num_batches: int, loader: Loader, scans: list[Scan]):
    """Made by eval_batches."""
    self.num_examples, self.scans = len(loader.part.source), scans
    self._make_stream, self._num_batches, self._loader = make_stream, num_batches, loader

  def __len__(self):
    return self._num_batches

  def __iter__(self):
    return self.after(0)

  def first_columns(self) -> dict:
    """What stays on the host of the first example."""
    return self._loader(0, 0).columns

  def image(self, index: int) -> np.ndarray:
    """What the model gets of one example of the split: [H, W, 3], or its frames [N, H, W, 3]."""
    arrays = self._loader(0, index).arrays
    return arrays["image"][arrays["image_mask"]] if "image_mask" in arrays else arrays["image"]

  def after(self, batches: int) -> Iterator["EvalBatch"]:
    """Those that come after so many."""
    for arrays, columns, _ in self._make_stream(batches):
      real = arrays["_mask"]
      yield EvalBatch(arrays, [row for row, kept in zip(columns, real, strict=True) if kept])


def eval_batches(
  section,
  tokenizer,
  *,
  layout: Layout,
  num_threads: int = 1,
  allow_truncated: bool = False,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> EvalBatches:
  """The batches of one evaluator; `section` has data, pp and batch_size (over all processes).

  With layout.for_training rows are made as in training (for perplexity), else for decoding.
  """
  (part, *others) = parts(section.data)
  if others:
    raise UserError("An evaluator takes one data set; write one evaluator for each.")
  loader = Loader(part, section.pp, tokenizer, layout, seed)
  scans = scan([loader], allow_truncated=allow_truncated)
  where = dict(process_index=process_index, process_count=process_count)
  return split_of(loader, section.batch_size, num_threads=num_threads, scans=scans, **where)


def split_of(
  loader: Loader,
  batch_size: int,
  *,
  num_threads: int = 1,
  scans: Sequence[Scan] = (),
  process_index: int = 0,
  process_count: int = 1,
) -> EvalBatches:
  """All rows of a loader in their order, each once."""
  local = _local_size(batch_size, process_count)
  num_examples = len(loader.part.source)
  num_batches = -(-num_examples // batch_size)

  def row(j):
    step, i = divmod(j, local)
    index = step * batch_size + process_index * local + i
    made = loader(0, min(index, num_examples - 1))
    made.columns["_sha256"] = _digest(made.arrays)
    own = dict(_mask=np.bool_(index < num_examples), _index=np.int32(index))
    return made._replace(arrays=made.arrays | own)

  def make_stream(first_batch):
    if first_batch == num_batches:
      return iter(())
    rows = grain.MapDataset.range(first_batch * local, num_batches * local).map(row)
    return _batched(rows, local, loader.layout, num_threads, num_workers=0)

  return EvalBatches(make_stream, num_batches, loader, list(scans))


def _digest(arrays) -> str:
  """Of what the model sees of an example."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def mixture(loaders, seed) -> grain.MapDataset:
  """The endless stream of rows, at any position: [g] is example g of the run."""
  streams = []
  for loader in loaders:
    shuffle_seed = int(np.random.SeedSequence((seed, loader.name_hash)).generate_state(1)[0])
    indices = grain.MapDataset.range(len(loader.part.source)).shuffle(seed=shuffle_seed).repeat()
    streams.append(indices.map_with_index(loader))
  if len(streams) == 1:
    return streams[0]
  return grain.MapDataset.mix(streams, weights=[loader.part.weight for loader in loaders])


def _local_size(batch_size: int, process_count: int) -> int:
  if batch_size % process_count:
    raise UserError(
      f"batch_size={batch_size} does not divide among {process_count} processes; take a multiple."
    )
  return batch_size // process_count


def _batched(rows, batch_size: int, layout: Layout, num_threads: int, num_workers: int):
  """Grain's iterator over (arrays, columns, truncated) of whole batches, made ahead by threads."""
  row_bytes = layout.res**2 * 12 * max(layout.num_frames, 1)
  pieces = 1
  if row_bytes * batch_size > WHOLE_BATCH_BYTES:  # So that all threads work on the same batch.
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    pieces = min((n for n in divisors if n >= num_threads), default=batch_size)
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=max(num_threads, 2 * pieces)
  )
  dataset = rows.batch(batch_size // pieces, batch_fn=_stack).to_iter_dataset(options)
  if pieces > 1:
    dataset = dataset.batch(pieces, batch_fn=_join)
  if num_workers:
    flags.FLAGS.mark_as_parsed()  # Grain's processes read flags of absl, which are not ours.
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
  return dataset


def _stack(rows: list[LoadedRow]):
  lengths = sorted({len(row.arrays["text"]) for row in rows})
  if len(lengths) > 1:
    raise UserError(f"pp makes texts of different lengths, {lengths}; end it with tolen(length).")
  arrays = {key: np.stack([row.arrays[key] for row in rows]) for key in rows[0].arrays}
  return arrays, [row.columns for row in rows], np.array([row.truncated for row in rows])


def _join(pieces):
  arrays, columns, truncated = zip(*pieces, strict=True)
  joined = {key: np.concatenate([piece[key] for piece in arrays]) for key in arrays[0]}
  return joined, [row for piece in columns for row in piece], np.concatenate(truncated)
