"""Which examples are in the batch of step s?

The batch (B rows; each process has its own rows, in the order of the global batch):

  key          shape, dtype                     meaning
  image        float32 [B, H, W, 3]             in [-1, 1]; with num_frames: [B, N, H, W, 3]
  image_mask   bool [B, N]                      only with num_frames; False: this image is padding
  text         int32 [B, T+1] | [B, T]          training | evaluation; see data/prefix_lm.py
  mask_ar      int32, like text                 0: prefix and newline; 1: suffix and padding
  mask_loss    int32, like text                 1: in the loss (training and perplexity)
  mask_input   int32, like text                 1: a real token (evaluation)
  _mask        bool [B]                         False: the row only fills the batch (evaluation)
  _index       int32 [B]                        number of the example in the split (evaluation)

Each data set is shuffled anew for each epoch, repeated forever, preprocessed (loader.py), mixed by
weight and batched. Example g of this endless stream depends only on (seed, g), and step s takes
g = s*B ... s*B + B-1, so a run resumes at any step without replay, on any number of processes.
Random ops draw from (seed, data set, example, epoch). Threads do the work (Pillow frees the GIL).
"""

import collections
import functools
import hashlib
import itertools
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from pgjax.data import loader as loader_lib, notes as notes_lib, prompt_order, workers
from pgjax.data.loader import Layout, LoadedRow, Loader
from pgjax.data.sources import registry
from pgjax.errors import UserError, naming

MAX_SCANNED = 10_000  # Texts scanned before a run, which measures a share of 1% to +-0.1%.
MAX_TRUNCATED = 0.01
WHOLE_BATCH_BYTES = 32 << 20  # Several threads share the work of a batch beyond this.


def parts(data, *, check_images: bool = True) -> list[loader_lib.Part]:
  """Opens dict(name=..., split=...), or a mixture {name: weight, ..., "split": ...}.

  In a mixture a value may also be a dict with a weight, fields of the source, and `pp`, its own
  ops. Weights are relative; a data set of weight 0 is omitted.
  """
  data = data.to_dict() if hasattr(data, "to_dict") else dict(data)
  if isinstance(data.get("name"), str):
    source = registry.open(data, check_images=check_images)
    order = registry.order_name(data["name"], data)
    return [loader_lib.Part(data["name"], source, 1.0, order=order)]
  shared = {key: data.pop(key) for key in ("split", "data_dir", "root") if key in data}
  opened = []
  for name, value in data.items():
    own = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight, pp = own.pop("weight", None), own.pop("pp", None)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
      raise UserError(f"data['{name}'] needs a weight, a number >= 0, not {weight!r}.")
    if weight:
      spec = {"name": name, **shared, **own}
      source = registry.open(spec, check_images=check_images)
      opened.append(loader_lib.Part(name, source, weight, pp=pp))
  if not opened:
    raise UserError(f"data={data!r} names no data set with a positive weight.")
  return opened


class Scan(NamedTuple):
  """The texts of one data set: their lengths, and what is odd about them and their boxes."""

  name: str
  seen: int
  truncated: int
  longest: int  # The text_len that the longest text needs.
  notes: tuple[str, ...] = ()
  prompts: Mapping[tuple[str, ...], int] = types.MappingProxyType({})  # Those for boxes and masks.


def _scanned(total: int) -> list[int]:
  """Examples of a data set that represent it."""
  seen = min(total, MAX_SCANNED)
  return [k * total // seen for k in range(seen)]


def scan(loaders, *, allow_truncated: bool) -> list[Scan]:
  """Counts texts over text_len, without reading images; raises above 1% unless allowed."""
  scans = []
  for loader in loaders:
    name, total, text_len = loader.part.name, len(loader.part.source), loader.layout.text_len
    noted, lengths = notes_lib.Notes(loader.part.source.where), []
    for i in (scanned := _scanned(total)):
      with naming(loader.part.source.where(i)):
        example, *length = loader.texts(i)
      lengths.append(length)
      noted.add(i, example)
    seen = len(scanned)
    truncated = sum(tokens > room for tokens, room in lengths)
    longest = max(tokens - room + text_len for tokens, room in lengths)
    if truncated > MAX_TRUNCATED * seen and not allow_truncated:
      raise UserError(
        f"{truncated:,} of {seen:,} texts of '{name}' ({truncated / seen:.1%}) are longer than "
        f"text_len={text_len} and would lose their end; the longest needs text_len={longest}. Set "
        "that, or input.allow_truncated=True."
      )
    scans.append(
      Scan(name, seen, truncated, longest, tuple(noted.sentences()), dict(noted.prompts))
    )
  return scans


def differing_prompts(training: Sequence[Scan], evaluated: Sequence[Scan]) -> list[str]:
  """How prompts of an evaluation differ from those of training, a sentence each."""
  asked: collections.Counter[tuple[str, ...]] = collections.Counter()
  for one in training:
    asked.update(one.prompts)
  return [
    f"{one.prompts[prompt]:,} of {one.seen:,} prompts of {one.name} ask {how}"
    for one in evaluated
    for prompt, how in notes_lib.differing_prompts(asked, one.prompts).items()
  ]


class TrainBatches:
  """Endless host batches of this process, from `start_step` on.

  `step` is that of the next batch, the whole position in the data; `num_examples` is one epoch.
  """

  def __init__(self, make_stream, num_examples: int, scans: list[Scan], start_step: int):
    self.num_examples, self.scans, self.step = num_examples, scans, start_step
    self._make_stream, self._stream = make_stream, make_stream(start_step)

  def at(self, step: int) -> "TrainBatches":
    """The same data from another step on, without reopening it."""
    return TrainBatches(self._make_stream, self.num_examples, self.scans, step)

  def __iter__(self):
    return self

  def close(self) -> None:
    """Ends its processes, if it has any."""
    if isinstance(self._stream, workers.Stream):
      self._stream.close()

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch, _ = next(self._stream)
    except RuntimeError as error:
      raise workers.explained(error) from error
    self.step += 1
    return batch


def check_opens(config: Any) -> None:
  """Opens the data of training and of all evaluators, to report a mistake before a download."""
  sections = [("config.input", config.input)]
  sections += [(f"config.evals[{name!r}]", section) for name, section in config.evals.items()]
  for where, section in sections:
    with naming(where):
      parts(section.data, check_images=False)


def train_batches(
  config, tokenizer, *, process_index: int = 0, process_count: int = 1, start_step: int = 0
) -> TrainBatches:
  """The batches of a run; raises UserError for mistakes that show without reading images."""
  section, batch_size = config.input, config.input.batch_size
  local = _local_size(batch_size, process_count)
  layout = Layout(config.res, config.text_len, config.num_frames, for_training=True)
  fixed = (section.pp, tokenizer, layout, config.seed, section.cache_mb << 20)
  loaders = [Loader(part, *fixed) for part in parts(section.data)]
  scans = scan(loaders, allow_truncated=section.allow_truncated)
  mixed = mixture(loaders, config.seed)

  def make_stream(first_step):
    def row(j):
      step, i = divmod(j, local)
      return mixed[(first_step + step) * batch_size + process_index * local + i]

    # Half of the maximum, as Grain rounds the number of pieces of one row up to a power of two.
    rows = grain.MapDataset.range(sys.maxsize // 2 // local * local).map(row)
    dataset = _batched(rows, local, layout, section.num_threads, section.num_workers)
    return workers.Stream(dataset) if section.num_workers else iter(dataset)

  num_examples = sum(len(loader.part.source) for loader in loaders)
  return TrainBatches(make_stream, num_examples, scans, start_step)


class EvalBatch(NamedTuple):
  """One batch of an evaluation, and its columns for the host."""

  arrays: dict[str, np.ndarray]
  rows: list[dict]  # Only of non-padding rows: id, prefix, answer ..., _sha256 of the arrays.


class EvalBatches:
  """All batches of a split, `len` in every process; it can be iterated over repeatedly.

  Copies of the last example, with `_mask` False, pad the last batch.
  """

  def __init__(self, make_stream, make_order, num_batches: int, loader: Loader, scans: list[Scan]):
    self.num_examples, self.scans = len(loader.part.source), scans
    self._make_stream, self._num_batches, self._loader = make_stream, num_batches, loader
    self._order = functools.cache(make_order)

  def __len__(self):
    return self._num_batches

  def __iter__(self):
    return self.after(0)

  @property
  def order(self) -> prompt_order.Order:
    """Of the examples; its first use reads the prompts of a large split."""
    return self._order()

  def first_columns(self) -> dict:
    """The first example's columns for the host."""
    columns = self._loader(0, 0).columns
    return {name: value for name, value in columns.items() if not name.startswith("_")}

  def image(self, index: int) -> np.ndarray:
    """The model's input for one example of the split: [H, W, 3], or its frames [N, H, W, 3]."""
    arrays = self._loader(0, index).arrays
    return arrays["image"][arrays["image_mask"]] if "image_mask" in arrays else arrays["image"]

  def after(self, batches: int) -> Iterator["EvalBatch"]:
    """Skips the first `batches` batches."""
    for arrays, columns in self._make_stream(batches, self.order):
      yield EvalBatch(arrays, list(itertools.compress(columns, arrays["_mask"])))


def eval_batches(
  section, tokenizer, *, layout: Layout, allow_truncated: bool = False, seed: int = 0, **reading
) -> EvalBatches:
  """The batches of one evaluator; `section` has data, pp and batch_size (over all processes).

  With layout.for_training rows are as in training (for perplexity), else for decoding. `reading`
  has num_threads, process_index and process_count, as in split_of.
  """
  (part, *others) = parts(section.data)
  if others:
    raise UserError("An evaluator takes one data set; write one evaluator for each.")
  loader = Loader(part, section.pp, tokenizer, layout, seed)
  scans = scan([loader], allow_truncated=allow_truncated)
  by_length = not layout.for_training
  return split_of(loader, section.batch_size, scans=scans, by_length=by_length, **reading)


def split_of(
  loader: Loader,
  batch_size: int,
  *,
  num_threads: int = 1,
  scans: Sequence[Scan] = (),
  process_index: int = 0,
  process_count: int = 1,
  by_length: bool = False,
  window: int | None = None,
) -> EvalBatches:
  """All rows of a loader, each once: in order, or by_length as in prompt_order.py."""
  local = _local_size(batch_size, process_count)
  num_examples = len(loader.part.source)
  num_batches = -(-num_examples // batch_size)

  def row(j, order):
    step, i = divmod(j, local)
    place = step * batch_size + process_index * local + i
    index = int(order.examples[min(place, num_examples - 1)])
    loaded = loader(0, index)
    loaded.columns.update(_sha256=_digest(loaded.arrays), _index=index)
    is_real = place < num_examples
    own = dict(_mask=np.bool_(is_real), _index=np.int32(index if is_real else place))
    with naming(loader.part.source.where(index)):
      return loaded._replace(arrays=order.trimmed(loaded.arrays, step) | own)

  def make_stream(first_batch, order):
    if first_batch == num_batches:
      return iter(())
    rows = grain.MapDataset.range(first_batch * local, num_batches * local)
    rows = rows.map(functools.partial(row, order=order))
    return _batched(rows, local, loader.layout, num_threads, num_workers=0)

  def make_order():
    if by_length:
      return _by_length(loader, batch_size, window)
    return prompt_order.Order(np.arange(num_examples))

  return EvalBatches(make_stream, make_order, num_batches, loader, list(scans))


def _by_length(loader, batch_size, window):
  total, text_len = len(loader.part.source), loader.layout.text_len
  sample = loader.prompt_lens(_scanned(total))
  if sample is None or not (len(sample) == total or prompt_order.may_save(sample, text_len)):
    return prompt_order.Order(np.arange(total))
  return prompt_order.by_length(loader.prompt_lens(range(total)), batch_size, text_len, window)


def _digest(arrays) -> str:
  """SHA-256 of an example's arrays."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def mixture(loaders, seed) -> grain.MapDataset:
  """The endless stream of rows; [g] is example g of the run."""
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
  """Grain's data set of (arrays, columns) of whole batches, prefetched by threads."""
  row_bytes = layout.res**2 * 12 * max(layout.num_frames, 1)
  pieces = 1
  # All threads work on the same batch. Worker processes take turns, so each makes whole batches.
  if row_bytes * batch_size > WHOLE_BATCH_BYTES and not num_workers:
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    pieces = min((n for n in divisors if n >= num_threads), default=batch_size)
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=max(num_threads, 2 * pieces)
  )
  dataset = rows.batch(batch_size // pieces, batch_fn=_stack).to_iter_dataset(options)
  if pieces > 1:
    dataset = dataset.batch(pieces, batch_fn=_join)
  if num_workers:
    flags.FLAGS.mark_as_parsed()  # Grain's processes read absl's flags, which pgjax does not use.
    options = grain.MultiprocessingOptions(num_workers=num_workers)
    dataset = dataset.mp_prefetch(options, worker_init_fn=workers.begin)
  return dataset


def _stack(rows: list[LoadedRow]):
  lengths = sorted({len(row.arrays["text"]) for row in rows})
  if len(lengths) > 1:
    raise UserError(f"texts have different lengths after pp, {lengths}; end it with tolen(length).")
  arrays = {key: np.stack([row.arrays[key] for row in rows]) for key in rows[0].arrays}
  return arrays, [row.columns for row in rows]


def _join(pieces):
  arrays, columns = zip(*pieces, strict=True)
  joined = {key: np.concatenate([piece[key] for piece in arrays]) for key in arrays[0]}
  return joined, [row for piece in columns for row in piece]
