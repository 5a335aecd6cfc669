"""How do questions reach the devices, and their answers come back in order?

Many questions are sorted by the length of their prompts, a window of batches at a time. One batch
is decoded while the answers of the previous one are reported and a thread reads the next ones.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from pgjax.data import device_feed, pipeline, prompt_order
from pgjax.data.loader import Loader
from pgjax.distributed import mesh as mesh_lib, processes
from pgjax.errors import UserError

WINDOW = 16  # Batches that are sorted at a time: answers come in order, so they wait for these.


def feed(
  questions: Loader, size: int, mesh: jax.sharding.Mesh, num_threads: int, *, by_length: bool
) -> device_feed.DeviceFeed:
  """Batches of this size on the mesh, with this process's `rows`."""
  part = mesh_lib.rows_of_process(mesh)
  read = dict(process_index=part.index, process_count=part.count, num_threads=num_threads)
  # A few questions have the text length of any others: one program answers them all.
  many = by_length and len(questions.part.source) > size * (prompt_order.MIN_BATCHES - 1)
  split = pipeline.split_of(questions, size, by_length=many, window=WINDOW, **read)
  pad = (questions.layout.text_len, questions.tokenizer.pad)
  return device_feed.to_device((_seeded(batch, *pad) for batch in split), mesh)


def dispatched_ahead(items: Iterable[Any], run: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
  """(item, run(item)) when the next item has been dispatched, too: no device waits for the caller.

  An error that all processes raise for the next item comes after the results before it.
  """
  previous = None
  try:
    for item in items:
      dispatched = item, run(item)
      if previous is not None:
        yield previous
      previous = dispatched
  except UserError as error:
    if previous is not None and (error.in_all_processes or processes.process_count() == 1):
      yield previous
    raise
  if previous is not None:
    yield previous


def in_order(
  outputs: Iterable[tuple[pipeline.EvalBatch, Any]], mesh: jax.sharding.Mesh
) -> Iterator[list[Any]]:
  """[prompt, tokens, log-probabilities] of each question, in the order of the questions.

  outputs: batches, and decode.Decoded of each; the result is the same on every process.
  """
  waiting: dict[int, list[Any]] = {}
  number = 0
  for batch, output in outputs:
    parts = mesh_lib.gather_parts(mesh, _rows(batch, output))
    waiting |= {question: row for question, *row in itertools.chain(*parts)}
    while number in waiting:
      yield waiting.pop(number)
      number += 1


def _rows(batch, output) -> list[tuple[int, str, list[int], list[float]]]:
  """This process's (number of the question, prompt, tokens, log-probabilities)."""
  columns = (mesh_lib.local_rows(a)[: len(batch.rows)].tolist() for a in output)
  questions = [(row["_index"], row["prefix"]) for row in batch.rows]
  return [(*question, *answer) for question, *answer in zip(questions, *columns, strict=True)]


def _seeded(batch: pipeline.EvalBatch, text_len: int, pad: int) -> pipeline.EvalBatch:
  """With an `_index` for each row that depends only on its image and prompt."""
  images, texts = batch.arrays["image"], batch.arrays["text"]
  more = max(0, text_len - texts.shape[1])  # The same number for any padding.
  texts = np.pad(texts, ((0, 0), (0, more)), constant_values=pad)
  hashes = [
    zlib.crc32(image.tobytes(), zlib.crc32(text.tobytes()))
    for image, text in zip(images, texts, strict=True)
  ]
  index = np.array(hashes, np.uint32).astype(np.int32) & 0x7FFFFFFF
  return batch._replace(arrays=batch.arrays | dict(_index=index))
