"""Records what TensorFlow makes of a row by every transfer's pp string: pixels/tf_transfers.npz.

PYTHONPATH=.:tests .venv-tf/bin/python tests/golden/record_tf_transfers.py
(`make test-tf` makes .venv-tf)
"""

import hashlib
import json
import pathlib
import tempfile

import numpy as np
from tf_reference import outcomes
from transfer_rows import columns, files, of_transfer, row, save_mask_weights, tiny
from transfer_strings import strings

FILE = pathlib.Path(__file__).with_name("pixels") / "tf_transfers.npz"
FORMATS = ("JPEG", "PNG")


def main():
  """Writes FILE: the encoded images, and of each string its pixels' SHA-256 and its columns."""
  of_format = {format: files(format) for format in FORMATS}
  arrays = {
    f"{format}/{name}/{i}": np.frombuffer(image, np.uint8)
    for format, each in of_format.items()
    for name, images in each.items()
    for i, image in enumerate(images)
  }
  with tempfile.TemporaryDirectory() as folder:
    weights = save_mask_weights(pathlib.Path(folder))
  recorded = {}
  for name, pp in strings().items():
    recorded[name] = dict(pp=pp, pixels=[], columns=[])
    for format in FORMATS:
      of_row = of_transfer(name, row(of_format[format]))
      found = outcomes(pp, of_row, tiny()[1], weights)
      image = found[0]["image"].numpy()
      recorded[name]["pixels"].append(hashlib.sha256(image.tobytes()).hexdigest())
      recorded[name]["columns"] = sorted({columns(each) for each in found})
  arrays["transfers"] = np.frombuffer(json.dumps(recorded).encode(), np.uint8)
  np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
  main()
