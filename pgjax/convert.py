"""Converts weights between big_vision's .npz, Hugging Face and PEFT folders, and pgjax's format.

The format of --src is detected. Arrays are read, cast and written one after another, so memory is
needed only for the largest. --dst appears when it is complete and, with --verify, compared.
"""

from __future__ import annotations

if __name__ == "__main__":  # Before the imports below, which take a moment.
  from pgjax.distributed import signals

  signals.begin()

import contextlib
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epy

from pgjax import cli, disk
from pgjax.checkpoints import resolve
from pgjax.distributed import signals
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import numpy as np

  from pgjax.checkpoints import merge_lora, orbax_params, source as source_lib, verify
  from pgjax.data import tokenizer as tokenizer_lib
  from pgjax.formats import lazy_array, npz, outputs, safetensors
  from pgjax.huggingface import (
    config_json as hf_config,
    hub,
    image_config,
    names as hf_names,
    peft,
    processor,
  )
  from pgjax.models import paligemma
  from pgjax.params import of_model
  from pgjax.training import run_log

DTYPES = ("float32", "bfloat16", "float16")
Leaves = Mapping[str, Any]  # {name: lazy_array.LazyArray}


def main(args: Any) -> int:
  """One conversion; returns 1, without writing --dst, if --verify finds a difference."""
  _check_flags(args)
  with outputs.new(args.dst, "--dst") as output:
    return _convert(args, _checked(args, output.path))


def _convert(args: Any, target: pathlib.Path) -> int:
  log = run_log.Log(None, main=True)
  tokenizer = tokenizer_lib.load(args.tokenizer).source if args.tokenizer else None
  source = source_lib.open_source(
    args.src, args.step, args.base, ema=args.ema, weights=args.weights, dtype=args.dtype
  )
  source = source._replace(tokenizer=tokenizer or source.tokenizer)
  if args.softcap is not None:
    llm = dict(source.model["llm"], final_logits_softcap=args.softcap)
    notes = source.notes if source.run else ()  # Notes on files are about the softcap.
    source = source._replace(model=dict(source.model, llm=llm), notes=notes)
  log.say(f"{args.src}: {_description(source)}")
  source = _without_adapters(source, args)
  leaves = _target_leaves(source, args.to, args.dtype)
  for note in [*source.notes, *_changes(source, leaves, args.to)]:
    log.say(f"- {note}")
  size, free = sum(leaf.nbytes for leaf in leaves.values()), disk.free_bytes(target)
  if size > free:
    raise UserError(
      f"--dst={target} needs {size / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free: free"
      " some space or name another disk."
    )
  start = time.monotonic()
  with _unfinished(target) as path:
    WRITERS[args.to](path, source, leaves)
    log.say(f"Written in {time.monotonic() - start:.1f} s.")
    if args.verify:
      table, same = _compared(path, source, leaves)
      log.say(table)
      if not same:
        log.say(f"What was read back differs from {args.src}: {target} is not written.")
        return 1
    if target.exists():
      raise UserError(f"{target} was written by another program meanwhile, and stays as it is.")
    for ending in source_lib.SIDECARS:
      if (beside := _beside(path, ending)).exists():
        beside.replace(_beside(target, ending))
    path.rename(target)  # Last: what it belongs to is in place.
  log.say(f"{target}: {len(leaves)} arrays, {size / 1e9:.3g} GB, complete.")
  if args.push:
    hub.push(target, args.push)
    log.say(f"Uploaded to https://huggingface.co/{args.push}")
  return 0


def _check_flags(args: Any) -> None:
  if args.to not in WRITERS:
    raise UserError(f"--to={args.to} must be one of {', '.join(WRITERS)}.")
  if args.dtype and args.dtype not in DTYPES:
    raise UserError(f"--dtype={args.dtype} must be one of {', '.join(DTYPES)}.")
  if args.push and args.to not in ("hf", "peft"):
    raise UserError(f"--push uploads folders of --to=hf and --to=peft, not of {args.to}.")
  if args.merge and args.to == "peft":
    raise UserError("--merge makes full weights: use it with --to=hf, bv or orbax, not with peft.")


def _checked(args: Any, target: pathlib.Path) -> pathlib.Path:
  """The target, after the checks that do not need the source."""
  if args.to == "bv" and target.suffix != ".npz":
    raise UserError(f"--dst={args.dst}: big_vision's format is one file; end the name with .npz.")
  if args.to != "bv" and target.suffix == ".npz":
    raise UserError(f"--dst={args.dst}: --to={args.to} makes a folder; only --to=bv makes an .npz.")
  if target.is_dir() and not any(target.iterdir()):
    target.rmdir()
  if target.exists():
    raise UserError(f"--dst={args.dst} exists already: name another, or remove it first.")
  parent = next(folder for folder in target.parents if folder.exists())
  if not parent.is_dir() or not os.access(parent, os.W_OK):
    what = "is no folder" if not parent.is_dir() else "may not be written by this user"
    raise UserError(f"--dst={args.dst} cannot be written: {parent} {what}.")
  return target


def _without_adapters(source: source_lib.Source, args: Any) -> source_lib.Source:
  """With adapters merged for --merge; only the adapters for --to=peft."""
  if not source.adapters:
    flags = {"--merge": args.merge, "--base": args.base, "--to=peft": args.to == "peft"}
    if given := [flag for flag, value in flags.items() if value]:
      raise UserError(f"{given[0]} is for adapters (LoRA), and {args.src} has none.")
    return source
  if args.to == "peft":
    folder = merge_lora.folder_of(source, args.base)
    notes = tuple(merge_lora.notes_of(source, folder))
    return source._replace(leaves=peft.arrays(folder), folder=folder, notes=notes)
  if args.merge:
    return merge_lora.merged(source, args.base)
  raise UserError(
    f"{args.src} is a model with adapters (LoRA) on {len(source.adapters)} arrays, which"
    f" --to={args.to} cannot store: --merge merges them, --to=peft writes only them."
  )


def _target_leaves(source: source_lib.Source, to: str, dtype: str | None) -> Leaves:
  """The leaves to write; they are cast while they are read."""
  leaves = {name: lazy_array.finite(leaf, name) for name, leaf in source.leaves.items()}
  if to == "bv" and (padding := _padding(source)):
    table = leaves[paligemma.TOKEN_TABLE]
    leaves[paligemma.TOKEN_TABLE] = hf_names.with_rows(table, table.shape[0] - padding)
  if dtype:
    leaves = {name: leaf.astype(np.dtype(dtype), name) for name, leaf in leaves.items()}
  return leaves


def _vocab_size(leaves: Leaves) -> int:
  return leaves[paligemma.TOKEN_TABLE].shape[0]


def _padding(source: source_lib.Source) -> int:
  """Rows of the token table for Hugging Face's <image>, and after it, that no text uses."""
  rows, image = _vocab_size(source.leaves), source.image_token
  if image is None and rows == hf_names.VOCAB_SIZE + hf_names.IMAGE_ROWS:
    image = hf_names.VOCAB_SIZE
  if image is None or rows != image + hf_names.IMAGE_ROWS:
    return 0
  used = _tokenizer(source).vocab_size if source.tokenizer is not None else image
  return hf_names.IMAGE_ROWS if used <= image else 0


def _hf_rows(source: source_lib.Source, leaves: Leaves) -> int:
  """Rows of the token table in a Hugging Face folder, which needs one for <image>."""
  rows, image = _vocab_size(leaves), _image_token(source)
  return image + hf_names.IMAGE_ROWS if image == rows else rows


def _tokenizer(source: source_lib.Source) -> tokenizer_lib.Tokenizer:
  return tokenizer_lib.Tokenizer(source.tokenizer, source.name)


def _description(source: source_lib.Source) -> str:
  kinds = dict(orbax="a checkpoint of pgjax", bv="big_vision's .npz", hf="a Hugging Face folder")
  kinds["trainer"] = "a checkpoint folder of another trainer"
  kinds["peft"] = f"a PEFT adapter on {source.folder and source.folder.base}"
  count = sum(int(np.prod(leaf.shape)) for leaf in source.leaves.values())
  dtypes = sorted({leaf.dtype.name for leaf in source.leaves.values()})
  llm, img = (source.model[part].get("variant", "custom") for part in ("llm", "img"))
  text = f"{kinds[source.kind]}, {img} and {llm}, {source.res} px, {count:,} parameters in"
  text += f" {' and '.join(dtypes)}"
  if adapters := source.adapters.values():
    ranks = " and ".join(map(str, sorted({a.rule.rank for a in adapters})))
    count = sum(math.prod(factor.shape) for a in adapters for factor in (a.a, a.b))
    text += f", with adapters of rank {ranks} on {len(adapters)} arrays, {count:,} parameters"
  return text


def _changes(source: source_lib.Source, leaves: Leaves, to: str) -> Iterator[str]:
  """A sentence for each difference between source and target."""
  for dtype in DTYPES:
    cast = [n for n, leaf in leaves.items() if leaf.dtype == dtype != source.leaves[n].dtype]
    if cast:
      before = " and ".join(sorted({source.leaves[name].dtype.name for name in cast}))
      yield f"{len(cast)} arrays are cast from {before} to {dtype}, rounded to nearest even."
  if to == "peft":
    return
  rows = _vocab_size(leaves)
  if dropped := _vocab_size(source.leaves) - rows:
    yield (
      f"The token table's last {dropped} rows (Hugging Face's <image> and padding) are dropped:"
      " big_vision's format does not have them."
    )
  if to == "hf" and (more := _hf_rows(source, leaves) - rows):
    yield f"The token table gets {more} rows of zeros, for Hugging Face's <image> and padding."
  if source.tokenizer is not None and (ids := _tokenizer(source).vocab_size) > rows:
    yield f"The tokenizer has {ids:,} ids and the token table only {rows:,} rows: do they fit?"
  images = source.images() if to == "hf" else None
  if images and images.method != "bicubic":
    run = "as this run did" if images.method == "antialias" else "which this run did not"
    yield f"Its processor resizes images bilinearly with antialiasing, {run}."
  if source.tokenizer is None:
    yield (
      f"{source.name} has no tokenizer, so none is written, but answers and Hugging Face's"
      " processor need one. --tokenizer=FILE adds it."
    )


def _compared(path: pathlib.Path, source: source_lib.Source, leaves: Leaves):
  """(a table, whether the written arrays equal `leaves`)."""
  if not peft.is_folder(path):
    return verify.compare(leaves, source, source_lib.open_source(str(path)))
  shapes = of_model.param_shapes(paligemma.Model(**source.model), source.res)
  again = peft.arrays(peft.read(path, str(path), shapes))
  expected = {name: leaf.astype(again[name].dtype) for name, leaf in leaves.items()}
  lines, same = verify.compare_arrays(expected, again)
  return "\n".join(lines), same


@contextlib.contextmanager
def _unfinished(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary path next to the target; removed at the end unless it was renamed."""
  path = target.with_name(f".unfinished-{os.getpid()}-{target.name}")

  def remove():
    aside = _beside(path, ".removed")
    with contextlib.suppress(OSError):
      path.rename(aside)  # As a whole: after a signal, the main thread may put it in place.
    shutil.rmtree(aside, ignore_errors=True)
    for file in (aside, *(_beside(path, ending) for ending in source_lib.SIDECARS)):
      with contextlib.suppress(OSError):
        file.unlink()

  def remove_while_written():
    for _ in range(20):
      remove()
      time.sleep(0.01)

  try:
    with signals.on_stop(remove_while_written, f"Stopped by {{}}; {target} was not written."):
      path.parent.mkdir(parents=True, exist_ok=True)
      yield path
  except UserError:
    raise
  except Exception as error:
    reason = disk.disk_trouble(error)
    if reason is None:
      raise
    raise UserError(f"{target} could not be written ({reason}); nothing of it remains.") from error
  finally:
    remove()


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
  return path.with_name(path.name + ending)


def _write_orbax(path: pathlib.Path, source: source_lib.Source, leaves: Leaves) -> None:
  """A step folder without optimizer state; with the run's config, or only the model's fields."""
  facts = _facts(source, leaves)
  identity = {name: facts.pop(name) for name in ("image_token", "images")}
  config = (dict(source.run.config) if source.run else {}) | facts
  if "params" in config:
    config["params"] = merge_lora.decoded_params(source)
  position = source.run.position if source.run else dict(step=0, total_steps=0, evaluated=False)
  step = source.run.step if source.run else 0
  run = dict(step=step, config=config, identity=identity, position=position)
  orbax_params.write_params(path, leaves, run, source.tokenizer)


def _write_bv(path: pathlib.Path, source: source_lib.Source, leaves: Leaves) -> None:
  """One .npz with the released files' names; next to it the model's facts and the tokenizer."""
  npz.write_npz(path, {f"params/{name}": leaf for name, leaf in leaves.items()})
  facts, tokenizer = (_beside(path, ending) for ending in source_lib.SIDECARS)
  facts.write_text(disk.dumps(_facts(source, leaves)))
  if source.tokenizer is not None:
    tokenizer.write_bytes(source.tokenizer)


def _write_hf(path: pathlib.Path, source: source_lib.Source, leaves: Leaves) -> None:
  """A folder for transformers and vLLM."""
  path.mkdir()
  rows = _hf_rows(source, leaves)
  safetensors.write_safetensors(path, hf_names.to_hf(leaves, rows))
  dtype = np.result_type(*{leaf.dtype for leaf in leaves.values()}).name
  image_token = _image_token(source)
  config = hf_config.config_json(
    source.model, res=source.res, vocab_size=rows, image_token_id=image_token, dtype=dtype
  )
  (path / "config.json").write_text(disk.dumps(config))
  (path / "generation_config.json").write_text(disk.dumps(hf_config.generation_config_json()))
  if source.tokenizer is not None:
    images = source.images() or image_config.Images("bicubic")  # As the hub's folders.
    files = processor.processor_files(
      source.tokenizer,
      res=source.res,
      patch_size=config["vision_config"]["patch_size"],
      image_token_id=image_token,
      method="bicubic" if images.method == "bicubic" else "bilinear",
      values=(images.low, images.high),
    )
    for name, content in files.items():
      (path / name).write_bytes(content)


def _write_peft(path: pathlib.Path, source: source_lib.Source, leaves: Leaves) -> None:
  """A folder for peft.PeftModel.from_pretrained, on the base in Hugging Face format."""
  shapes = of_model.param_shapes(paligemma.Model(**source.model), source.res)
  peft.write(path, peft.with_arrays(source.folder, leaves), shapes)


def _image_token(source: source_lib.Source) -> int:
  """The id of <image>: the source's, or the first after the text tokens."""
  if source.image_token is not None:
    return source.image_token
  if source.tokenizer is not None:
    tokenizer = _tokenizer(source)
    return tokenizer.vocab_size if tokenizer.image is None else tokenizer.image
  return _vocab_size(source.leaves) - _padding(source)


def _facts(source: source_lib.Source, leaves: Leaves) -> dict[str, Any]:
  """What the arrays do not define of their model."""
  llm = dict(source.model["llm"], vocab_size=_vocab_size(leaves))
  facts = dict(model=dict(img=dict(source.model["img"]), llm=llm), res=source.res)
  images = source.images()
  pp = images and images.pp(source.res)
  return disk.plain(facts | dict(image_token=_image_token(source), images=pp))


WRITERS = dict(hf=_write_hf, bv=_write_bv, orbax=_write_orbax, peft=_write_peft)
FLAGS = [
  cli.Flag("src", str, required=True, help=f"what to convert; {resolve.ALLOWED}"),
  cli.Flag(
    "dst", str, required=True, help="a new folder, or for --to=bv a new .npz; or s3://, gs://"
  ),
  cli.Flag("to", str, required=True, help="hf, bv (big_vision's .npz), orbax (pgjax) or peft"),
  cli.Flag("merge", bool, False, help="merge adapters into the weights"),
  cli.Flag("base", str, help="with adapters: the weights that they belong to, of any format"),
  cli.WEIGHTS,
  cli.Flag("dtype", str, help="float32, bfloat16 or float16; without it unchanged"),
  cli.Flag("verify", bool, False, help="read back, compare every array and a forward pass"),
  cli.STEP,
  cli.EMA,
  cli.Flag("tokenizer", str, help="a tokenizer.model for weights without one"),
  cli.Flag("softcap", float, help="of the final logits, as trained; 0 is off; for .npz files"),
  cli.Flag("push", str, help="upload the folder to the hub as org/name, private if it is new"),
]
CONFIG = "none"
EXAMPLES = [
  "python -m pgjax.convert --src=workdir/chartqa --dst=out/chartqa-hf --to=hf --dtype=bfloat16",
  "python -m pgjax.convert --src=workdir/qlora --dst=out/merged --to=hf --merge --base=pt_3b_224",
  "python -m pgjax.convert --src=google/paligemma2-3b-pt-224 --dst=pt.npz --to=bv --verify",
]

if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS, config=CONFIG, examples=EXAMPLES)
