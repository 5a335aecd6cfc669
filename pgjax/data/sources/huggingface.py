"""Which examples are in a data set of Hugging Face's `datasets`?

  dict(name="hf", fname="data/saved", split="train")     what save_to_disk wrote; needs only pyarrow
  dict(name="hf", fname="data/folder", split="train")    local Parquet files
  dict(name="hf:owner/name", split="train[:5%]")         from the hub; needs the package `datasets`
  dict(name="hf:owner/name", split="train", streaming=True, rows=100_000)

Training reads rows at random positions. A data set of the hub is therefore downloaded to the cache
of `datasets`; one that is larger than the disk is read as a stream up to `rows`, and these rows are
stored as an Arrow file in the cache folder ($PGJAX_CACHE_DIR). No code of a data set is run.
"""

import hashlib
import logging
import os
import re
from typing import Any

import msgspec

from pgjax import cache_dir
from pgjax.data.sources import arrow_rows, lazy_table, parquet
from pgjax.data.sources.columns import Columns, unused_split
from pgjax.errors import UserError, cut
from pgjax.formats import input_files, typed_json

log = logging.getLogger("pgjax")

_STATE, _DICT = "state.json", "dataset_dict.json"
_STREAM_BATCH = 64
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HuggingFace(lazy_table.LazyTable):
  """One example a row. image, prefix, suffix, id: the columns with these; prompt: all prefixes.

  config: the name of a configuration; revision: a branch, tag or commit of the hub.
  """

  def __init__(
    self,
    fname,
    split=None,
    config=None,
    revision=None,
    streaming=False,
    rows=None,
    root=None,
    start=None,
    stop=None,
    image=None,
    prefix=None,
    suffix=None,
    id=None,
    prompt=None,
    allow_urls=False,
  ):
    if streaming and rows is None:
      raise UserError(
        f"data='hf:{fname}': streaming=True needs rows=, the number of rows that are stored on the"
        " disk, as training reads them at random positions."
      )
    path = os.path.expanduser(fname)
    is_local = input_files.exists(path)
    if is_local:
      opened, root = _local(path, split), root or path
    else:
      opened = _from_hub(fname, split, config, revision, rows if streaming else None)
      root = root or _cache_of_datasets()
    super().__init__(
      path,
      opened,
      root=root,
      columns=Columns(image, prefix, suffix, id, prompt),
      start=start,
      stop=stop,
      allow_urls=allow_urls,
    )
    if not is_local:
      self.fname = None  # There is no folder beside the data.


class _DataFile(msgspec.Struct):
  filename: typed_json.Text


class _State(msgspec.Struct):
  data_files: list[_DataFile] = msgspec.field(name="_data_files")
  indices_files: list[_DataFile] | None = msgspec.field(default=None, name="_indices_files")


class _Splits(msgspec.Struct):
  splits: list[typed_json.Text]


def _local(path: str, split: str | None) -> arrow_rows.ArrowRows:
  """What save_to_disk wrote, or Parquet files."""
  if input_files.exists(os.path.join(path, _DICT)):
    known = typed_json.read(os.path.join(path, _DICT), _Splits).splits
    if split not in known:
      raise UserError(f"{path} has no split {split!r}; it has {', '.join(known)}.")
    path = input_files.inside(os.path.abspath(path), split, path, what="folder")
  if input_files.exists(os.path.join(path, _STATE)):
    unused_split("hf", split, path)
    return _saved(os.path.abspath(path))
  if path.endswith(".arrow") and not input_files.is_folder(path):
    unused_split("hf", split, path)
    return arrow_rows.ArrowRows([path])
  try:
    return arrow_rows.of_parquet(parquet.parquet_files(path, split))
  except UserError as error:
    if "has no Parquet files" not in str(error):
      raise
    raise UserError(
      f"{path} has neither what save_to_disk writes nor Parquet files; other folders have a source"
      " of their own: jsonl or csv for metadata.jsonl and .csv, folder for a folder per class."
    ) from None


def _saved(folder: str) -> arrow_rows.ArrowRows:
  where = os.path.join(folder, _STATE)
  state = typed_json.read(where, _State)
  if not state.data_files:
    raise UserError(f"{where} names no data files, so the data set is empty.")
  paths = [input_files.inside(folder, f.filename, where, what="file") for f in state.data_files]
  indices = None
  if state.indices_files:  # Of a data set that was shuffled or filtered.
    named = (input_files.inside(folder, f.filename, where, what="file")
             for f in state.indices_files)  # fmt: skip
    listed = arrow_rows.ArrowRows(list(named))
    indices = [next(iter(listed[i].values())) for i in range(len(listed))]
  return arrow_rows.ArrowRows(paths, indices=indices)


class HubRows:
  """Rows of a data set that the package `datasets` opened."""

  def __init__(self, dataset: Any, name: str):
    self._dataset, self._name = dataset, name
    features = dataset.features
    self._classes = {c: f.names for c, f in features.items() if type(f).__name__ == "ClassLabel"}
    texts = [c for c, f in features.items() if not re.search(r"\b(Image|Audio|Video)\(", repr(f))]
    self._texts = dataset.select_columns(texts)
    self.names_files = False

  def __len__(self):
    return len(self._dataset)

  def __getitem__(self, i):
    return self._named(self._dataset[i])

  def texts(self, i):
    """The columns without images."""
    return self._named(self._texts[i])

  def at(self, i):
    """Name and row."""
    return f"{self._name}, row {i}"

  def _named(self, row: dict[str, Any]) -> dict[str, Any]:
    for name, names in self._classes.items():
      if isinstance(row.get(name), int):  # -1 is no label.
        row[name] = names[row[name]] if row[name] >= 0 else None
    return row


def _from_hub(name, split, config, revision, rows):
  if not _HUB_NAME.fullmatch(name):
    raise UserError(
      f"data='hf': {name!r} is neither a folder or file here nor a name on the Hugging Face hub,"
      " such as 'owner/name'."
    )
  if not isinstance(split, str):
    raise UserError(f"data='hf:{name}' needs split=, such as split='train'.")
  datasets = require(name)
  arguments = dict(split=split, revision=revision, streaming=rows is not None)
  try:
    dataset = datasets.load_dataset(name, config, **arguments)
    dataset = _undecoded(dataset, datasets)
    if rows is None:
      return HubRows(dataset, f"hf:{name}, split {split}")
    return _stored(dataset, f"{name} {config} {split} {revision} {rows}", rows)
  except UserError:
    raise
  except Exception as error:  # Any of the library's, of the network's and of the hub's.
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
      f"The data set {name!r}, split {split!r}, cannot be loaded: {reason[:300]} (it is neither a"
      " folder here nor was it read from the Hugging Face hub)."
    ) from None


def require(name: str) -> Any:
  """The module `datasets`; raises UserError if it is not installed."""
  try:
    import datasets
  except ImportError:
    raise UserError(
      f"data='hf:{name}': there is no such folder here, and reading it from the Hugging Face hub"
      " needs the package datasets: pip install -r requirements-data.txt."
    ) from None
  return datasets


def _undecoded(dataset: Any, datasets: Any) -> Any:
  """Images stay encoded."""
  for name, feature in (dataset.features or {}).items():
    if (plain := _plain(feature, datasets)) is not feature:
      dataset = dataset.cast_column(name, plain)
  return dataset


def _plain(feature: Any, datasets: Any) -> Any:
  """The feature, or list of them, with images that stay encoded."""
  if isinstance(feature, datasets.Image):
    return datasets.Image(decode=False)
  inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
  if inner is None or (plain := _plain(inner, datasets)) is inner:
    return feature
  return [plain] if isinstance(feature, list) else type(feature)(plain)


def _stored(dataset: Any, identity: str, rows: int) -> arrow_rows.ArrowRows:
  """The first `rows` of a stream, from the cache folder if they are there."""
  pyarrow = arrow_rows.require()
  folder = cache_dir.folder("arrow")
  if folder is None:
    raise UserError("streaming stores rows in the cache folder: set PGJAX_CACHE_DIR.")
  target = str(folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + ".arrow"))
  if not os.path.exists(target):
    log.warning("Storing %d rows of a stream in %s.", rows, target)
    part, schema = f"{target}.{os.getpid()}", dataset.features.arrow_schema
    stream = dataset.take(rows).iter(batch_size=_STREAM_BATCH)
    try:
      with pyarrow.OSFile(part, "wb") as sink, pyarrow.ipc.new_file(sink, schema) as out:
        for columns in stream:
          out.write_batch(pyarrow.record_batch(columns, schema=schema))
      os.replace(part, target)
    finally:
      if os.path.exists(part):
        os.remove(part)
  return arrow_rows.ArrowRows([target], labels=[f"hf:{cut(identity)}"])


def _cache_of_datasets() -> str:
  """Where images of downloaded archives are."""
  import datasets

  return str(datasets.config.HF_DATASETS_CACHE)
