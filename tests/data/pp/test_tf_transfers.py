"""Every transfer's pp string gives the pixels and columns that TensorFlow gave once.

tests/tf compares with TensorFlow itself.
"""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from transfer_rows import columns, of_transfer, row, save_mask_weights, seeded, tiny

from pgjax.data.pp import parse

RECORDED = pathlib.Path(__file__).resolve().parents[2] / "golden/pixels/tf_transfers.npz"


@pytest.mark.slow  # Masks are encoded by a compiled VQ-VAE.
def test_arrays_and_columns_are_those_that_tensorflow_gave(tmp_path, monkeypatch):
  save_mask_weights(tmp_path)
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  with np.load(RECORDED) as file:
    arrays = dict(file)
  transfers = json.loads(arrays.pop("transfers").tobytes())
  assert len(transfers) >= 66
  files = {"JPEG": {}, "PNG": {}}
  for name in sorted(arrays):
    format, feature, _ = name.split("/")
    files[format].setdefault(feature, []).append(arrays[name].tobytes())
  for name, recorded in transfers.items():
    run = parse.parse(recorded["pp"], tokenizer=tiny()[0])
    for of_format, pixels in zip(files.values(), recorded["pixels"], strict=True):
      values = of_transfer(name, row(of_format))
      done = run(dict(values) | seeded(0))
      assert hashlib.sha256(done["image"].tobytes()).hexdigest() == pixels, name
      assert columns(done) in recorded["columns"], name
    if len(recorded["columns"]) > 1:
      seen = {columns(run.text_only()(values | seeded(seed))) for seed in range(1, 12)}
      assert seen <= set(recorded["columns"]), name
      assert len(seen) > 1, name
