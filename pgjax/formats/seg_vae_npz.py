"""Reads and writes weights of the VQ-VAE of masks."""

import functools
import os
import pathlib
from typing import Any

import numpy as np

from pgjax.errors import UserError
from pgjax.formats import lazy_array, npz
from pgjax.models import seg_vae

FILE = "vae-oid.npz"
WHERE_FROM = (
  f"copy PaliGemma's, gs://big_vision/paligemma/{FILE}, into the folder PGJAX_WEIGHTS_DIR, or give"
  " the path of the file (docs/boxes.md)"
)


@functools.lru_cache(maxsize=2)
def load(name: str = "oi") -> dict[str, Any]:
  """Float32 parameters of a path; "oi" is PaliGemma's vae-oid.npz in $PGJAX_WEIGHTS_DIR."""
  folder = os.environ.get("PGJAX_WEIGHTS_DIR", "")
  path = (pathlib.Path(folder, FILE) if name == "oi" else pathlib.Path(name)).expanduser()
  is_unset = name == "oi" and not folder
  if is_unset or not path.is_file():
    looked = "PGJAX_WEIGHTS_DIR, which is not set" if is_unset else path
    raise UserError(f"The weights of masks, '{name}', are not there ({looked}): {WHERE_FROM}.")
  leaves = npz.read_npz(path, ("encoder.", "decoder.", seg_vae.CODEBOOK))
  try:
    return seg_vae.from_arrays({n: leaf.whole().astype(np.float32) for n, leaf in leaves.items()})
  except UserError as error:
    raise UserError(f"{path}: {error}; {WHERE_FROM}.") from None


def save(path: pathlib.Path, params: seg_vae.Params) -> None:
  """Writes a file that `load` reads."""
  arrays = seg_vae.to_arrays(params)
  npz.write_npz(path, {name: lazy_array.of_array(a) for name, a in arrays.items()})
