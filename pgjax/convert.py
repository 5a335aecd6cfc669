"""Weights in, weights out: between big_vision's .npz, Hugging Face folders, PEFT's and pgjax's own.

What --src is shows in itself. Leaves are read, cast and written one after another, so that a model
of any size passes through a machine that holds its largest leaf. Nothing stands under the target's
name before it is complete and, with --verify, has been read back and compared.
"""

from __future__ import annotations

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
from pgjax.errors import UserError

with epy.lazy_imports():  # Not for --help or a mistake in the config.
  import numpy as np

  from pgjax.checkpoints import merge_lora, orbax_params, source as source_lib, verify
  from pgjax.data import tokenizer as tokenizer_lib
  from pgjax.formats import lazy_array, npz, safetensors
  from pgjax.huggingface import config_json as hf_config, hub, names as hf_names, peft, processor
  from pgjax.models import paligemma
  from pgjax.params import of_model
  from pgjax.training import run_log

DTYPES = ("float32", "bfloat16", "float16")


def main(args: Any) -> int:
  """One conversion. 1 if --verify finds a difference: then the target is not written."""
  log = run_log.Log(None, main=True)
  target = _checked(args)
  source = source_lib.open_source(args.src, args.step, args.base, ema=args.ema)
  if args.tokenizer:
    source = source._replace(tokenizer=tokenizer_lib.load(args.tokenizer).source)
  if args.softcap is not None:
    llm = dict(source.model["llm"], final_logits_softcap=args.softcap)
    notes = source.notes if source.run else ()  # Those of files guess the softcap.
    source = source._replace(model=dict(source.model, llm=llm), notes=notes)
  log.say(f"{args.src}: {_described(source)}")
  source = _without_adapters(source, args)
  leaves = _as_asked(source, args.to, args.dtype)
  for note in [*source.notes, *_changes(source, leaves, args.to)]:
    log.say(f"- {note}")
  _check_room(target, leaves)
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
    path.rename(target)
    for ending in source_lib.BESIDE:
      if (beside := _beside(path, ending)).exists():
        beside.rename(_beside(target, ending))
  size = sum(leaf.nbytes for leaf in leaves.values())
  log.say(f"{target}: {len(leaves)} arrays, {size / 1e9:.3g} GB, complete.")
  if args.push:
    hub.push(target, args.push)
    log.say(f"Uploaded to https://huggingface.co/{args.push}")
  return 0


def _checked(args: Any) -> pathlib.Path:
  """The target, after all that can be wrong without opening the source."""
  if args.to not in WRITERS:
    raise UserError(f"--to={args.to} must be one of {', '.join(WRITERS)}.")
  if args.dtype and args.dtype not in DTYPES:
    raise UserError(f"--dtype={args.dtype} must be one of {', '.join(DTYPES)}.")
  if args.push and args.to not in ("hf", "peft"):
    raise UserError(f"--push uploads folders of --to=hf and --to=peft, not of {args.to}.")
  if args.merge and args.to == "peft":
    raise UserError("--merge makes full weights: it goes with --to=hf, bv or orbax, not with peft.")
  target = pathlib.Path(args.dst).expanduser().absolute()
  if args.to == "bv" and target.suffix != ".npz":
    raise UserError(f"--dst={args.dst}: big_vision's format is one file; write a name with .npz.")
  if args.to != "bv" and target.suffix == ".npz":
    raise UserError(f"--dst={args.dst}: --to={args.to} makes a folder; leave .npz to --to=bv.")
  if target.is_dir() and not any(target.iterdir()):
    target.rmdir()
  if target.exists():
    raise UserError(f"--dst={args.dst} is there already: name another, or remove it first.")
  return target


def _without_adapters(source: source_lib.Source, args: Any) -> source_lib.Source:
  """Merged if that was asked for; for PEFT the arrays of its folder alone."""
  if not source.adapters:
    flags = {"--merge": args.merge, "--base": args.base, "--to=peft": args.to == "peft"}
    if given := [flag for flag, value in flags.items() if value]:
      raise UserError(f"{given[0]} is about adapters (LoRA), and {args.src} has none.")
    return source
  if args.to == "peft":
    folder = merge_lora.folder_of(source, args.base)
    notes = tuple(merge_lora.notes_of(source, folder))
    return source._replace(leaves=peft.arrays(folder), folder=folder, notes=notes)
  if args.merge:
    return merge_lora.folded(source, args.base)
  raise UserError(
    f"{args.src} is a model with adapters (LoRA) of {len(source.adapters)} arrays beside it, and"
    f" --to={args.to} has no place for them: --merge adds them up, and --to=peft writes them alone."
  )


def _as_asked(
  source: source_lib.Source, to: str, dtype: str | None
) -> dict[str, lazy_array.LazyArray]:
  """The leaves as they will be written; they are cast while they are read."""
  leaves = dict(source.leaves)
  if to == "bv" and leaves[paligemma.TOKEN_TABLE].shape[0] == hf_names.HF_VOCAB_SIZE:
    table = leaves[paligemma.TOKEN_TABLE]
    leaves[paligemma.TOKEN_TABLE] = hf_names.with_rows(table, hf_names.VOCAB_SIZE)
  if dtype:
    leaves = {name: leaf.astype(np.dtype(dtype), name) for name, leaf in leaves.items()}
  return leaves


def _described(source: source_lib.Source) -> str:
  kinds = dict(orbax="a checkpoint of pgjax", bv="big_vision's .npz", hf="a Hugging Face folder")
  kinds["peft"] = f"an adapter of PEFT on {source.folder and source.folder.base}"
  count = sum(int(np.prod(leaf.shape)) for leaf in source.leaves.values())
  dtypes = sorted({leaf.dtype.name for leaf in source.leaves.values()})
  llm, img = (source.model[part].get("variant", "custom") for part in ("llm", "img"))
  return (
    f"{kinds[source.kind]}, {img} and {llm}, {source.res} px, {count:,} parameters in"
    f" {' and '.join(dtypes)}{_adapters_in_words(source)}"
  )


def _adapters_in_words(source: source_lib.Source) -> str:
  if not source.adapters:
    return ""
  ranks = " and ".join(map(str, sorted({a.rule.rank for a in source.adapters.values()})))
  count = sum(math.prod(f.shape) for a in source.adapters.values() for f in (a.a, a.b))
  return f", with adapters of rank {ranks} on {len(source.adapters)} arrays, {count:,} parameters"


def _changes(
  source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray], to: str
) -> Iterator[str]:
  """Everything that will not be the same afterwards."""
  for dtype in DTYPES:
    cast = [n for n, leaf in leaves.items() if leaf.dtype == dtype != source.leaves[n].dtype]
    if cast:
      before = sorted({source.leaves[name].dtype.name for name in cast})
      before = " and ".join(before)
      yield f"{len(cast)} arrays go from {before} to {dtype}, rounded to nearest even."
  if to == "peft":
    return
  have, rows = (
    source.leaves[paligemma.TOKEN_TABLE].shape[0],
    leaves[paligemma.TOKEN_TABLE].shape[0],
  )
  if rows < have:
    yield (
      f"The token table's last {have - rows} rows (Hugging Face's <image> and padding) have no"
      " place in big_vision's form and are dropped."
    )
  if to == "hf" and rows == hf_names.VOCAB_SIZE:
    more = hf_names.HF_VOCAB_SIZE - rows
    yield f"The token table gets {more} rows of zeros, for Hugging Face's <image> and padding."
  if to == "hf" and _resize_method(source) == "bilinear":
    yield "Its processor resizes images bilinearly with antialiasing, as this run did."
  if source.tokenizer is None:
    yield (
      f"{source.name} comes without a tokenizer.model, so none is written: what needs one (answers,"
      " Hugging Face's processor) will ask for it. --tokenizer=FILE adds it."
    )


def _compared(
  path: pathlib.Path, source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]
):
  """(a table, whether what was written is what was asked for)."""
  if not peft.is_folder(path):
    return verify.compare(leaves, source, source_lib.open_source(str(path)))
  shapes = of_model.param_shapes(paligemma.Model(**source.model), source.res)
  again = peft.arrays(peft.read(path, str(path), shapes))
  asked = {name: leaf.astype(again[name].dtype) for name, leaf in leaves.items()}
  lines, same = verify.compare_arrays(asked, again)
  return "\n".join(lines), same


def _check_room(target: pathlib.Path, leaves: Mapping[str, lazy_array.LazyArray]) -> None:
  needed, free = sum(leaf.nbytes for leaf in leaves.values()), disk.free_bytes(target)
  if needed > free:
    raise UserError(
      f"--dst={target} needs {needed / 1e9:.3g} GB and its disk has {free / 1e9:.3g} GB free: make"
      " room or name another disk."
    )


@contextlib.contextmanager
def _unfinished(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name next to the target's that is gone afterwards, unless it was renamed."""
  path = target.with_name(f".unfinished-{os.getpid()}-{target.name}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
  except UserError:
    raise
  except Exception as error:
    reason = disk.disk_trouble(error)
    if reason is None:
      raise
    raise UserError(f"{target} could not be written ({reason}); nothing is left of it.") from error
  finally:
    shutil.rmtree(path, ignore_errors=True)
    for ending in ("", *source_lib.BESIDE):
      _beside(path, ending).unlink(missing_ok=True)


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
  return path.with_name(path.name + ending)


def _write_orbax(
  path: pathlib.Path, source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]
) -> None:
  """A step folder without an optimizer; the config is the run's, or says only what the model is."""
  facts = _facts(source, leaves)
  identity = dict(image_token=facts.pop("image_token"))
  config = (dict(source.run.config) if source.run else {}) | facts
  if "params" in config:
    config["params"] = merge_lora.decoded_params(source)
  position = source.run.position if source.run else dict(step=0, total_steps=0, evaluated=False)
  step = source.run.step if source.run else 0
  run = dict(step=step, config=config, identity=identity, position=position)
  orbax_params.write_params(path, leaves, run, source.tokenizer)


def _write_bv(
  path: pathlib.Path, source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]
) -> None:
  """One .npz, names as in the released files; next to it what an .npz cannot say."""
  npz.write_npz(path, {f"params/{name}": leaf for name, leaf in leaves.items()})
  facts, tokenizer = (_beside(path, ending) for ending in source_lib.BESIDE)
  facts.write_text(disk.dumps(_facts(source, leaves)))
  if source.tokenizer is not None:
    tokenizer.write_bytes(source.tokenizer)


def _write_hf(
  path: pathlib.Path, source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]
) -> None:
  """Everything that transformers and vLLM look for, in files that both read."""
  path.mkdir()
  rows = leaves[paligemma.TOKEN_TABLE].shape[0]
  rows = hf_names.HF_VOCAB_SIZE if rows == hf_names.VOCAB_SIZE else rows
  safetensors.write_safetensors(path, hf_names.to_hf(leaves, rows))
  dtype = np.result_type(*{leaf.dtype for leaf in leaves.values()}).name
  image_token = _image_token(source)
  config = hf_config.config_json(
    source.model, res=source.res, vocab_size=rows, image_token_id=image_token, dtype=dtype
  )
  (path / "config.json").write_text(disk.dumps(config))
  (path / "generation_config.json").write_text(disk.dumps(hf_config.generation_config_json()))
  if source.tokenizer is not None:
    files = processor.processor_files(
      source.tokenizer,
      res=source.res,
      patch_size=config["vision_config"]["patch_size"],
      image_token_id=image_token,
      method=_resize_method(source),
    )
    for name, content in files.items():
      (path / name).write_bytes(content)


def _write_peft(
  path: pathlib.Path, source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]
) -> None:
  """What peft.PeftModel.from_pretrained loads on the base in Hugging Face format."""
  shapes = of_model.param_shapes(paligemma.Model(**source.model), source.res)
  peft.write(path, peft.with_arrays(source.folder, leaves), shapes)


def _resize_method(source: source_lib.Source) -> str:
  """How the model's images were resized: as its run says, else as in the hub's folders."""
  pp = str(source.run.config.get("input", {}).get("pp", "")) if source.run else ""
  return "bicubic" if "resize(" not in pp or "bicubic" in pp else "bilinear"


def _image_token(source: source_lib.Source) -> int:
  """The id of <image>: where the source had it, or the first that no text has."""
  if source.image_token is not None:
    return source.image_token
  if source.tokenizer is not None:
    return tokenizer_lib.Tokenizer(source.tokenizer, source.name).vocab_size
  rows = source.leaves[paligemma.TOKEN_TABLE].shape[0]
  return hf_names.VOCAB_SIZE if rows == hf_names.HF_VOCAB_SIZE else rows


def _facts(source: source_lib.Source, leaves: Mapping[str, lazy_array.LazyArray]) -> dict[str, Any]:
  """What arrays do not say of their model."""
  llm = dict(source.model["llm"], vocab_size=leaves[paligemma.TOKEN_TABLE].shape[0])
  facts = dict(model=dict(img=dict(source.model["img"]), llm=llm), res=source.res)
  return disk.plain(facts | dict(image_token=_image_token(source)))


WRITERS = dict(hf=_write_hf, bv=_write_bv, orbax=_write_orbax, peft=_write_peft)
FLAGS = [
  cli.Flag("src", str, required=True, help=f"what to convert; {resolve.ALLOWED}"),
  cli.Flag("dst", str, required=True, help="a new folder, or for --to=bv a new .npz file"),
  cli.Flag(
    "to", str, required=True, help="hf, bv (big_vision's .npz), orbax (pgjax's own) or peft"
  ),
  cli.Flag("merge", bool, False, help="add adapters to the weights that they belong to"),
  cli.Flag("base", str, help="with adapters: the weights that they belong to, of any format"),
  cli.Flag("dtype", str, help="float32, bfloat16 or float16; without it each array keeps its own"),
  cli.Flag("verify", bool, False, help="read back, compare every array and a forward pass"),
  cli.Flag("step", int, help="which step of a workdir; without it the newest"),
  cli.Flag("ema", bool, True, help="take a run's averages, if it kept them (config.ema_decay)"),
  cli.Flag("tokenizer", str, help="a tokenizer.model for weights that come without one"),
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
