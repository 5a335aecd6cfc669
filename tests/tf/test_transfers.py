"""Every pp string of the 34 transfers gives the arrays and columns of TensorFlow."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="`make test-tf` installs TensorFlow")
from tf_reference import outcomes
from transfer_rows import columns, files, of_transfer, row, save_mask_weights, seeded, tiny
from transfer_strings import SHARED, strings

from pgjax.data.pp import parse

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """(folder of a VQ-VAE's random weights, their arrays)."""
  folder = tmp_path_factory.mktemp("vae")
  return folder, save_mask_weights(folder)


@pytest.mark.parametrize(
  "name", strings() or [pytest.param("", marks=pytest.mark.skip("no shared"))]
)
def test_arrays_and_columns_are_those_of_tensorflow(name, weights, monkeypatch):
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(weights[0]))
  pp = strings()[name]
  for format in ("JPEG", "PNG"):
    values = of_transfer(name, row(files(format)))
    theirs = outcomes(pp, values, tiny()[1], weights[1])
    ours = parse.parse(pp, tokenizer=tiny()[0])
    expected = {columns(each) for each in theirs}
    done = ours(dict(values) | seeded(0))
    np.testing.assert_array_equal(done["image"], theirs[0]["image"].numpy())
    assert done["image"].dtype == np.float32
    assert {each for each in done if not each.startswith("_")} == theirs[0].keys() - {"_id"}
    assert columns(done) in expected, (columns(done), columns(theirs[0]))
    if len(expected) > 1:
      texts = [ours.text_only()(values | seeded(seed)) for seed in range(1, 12)]
      seen = {columns(each) for each in texts}
      assert seen <= expected
      assert len(seen) > 1


def test_all_strings_are_compared():
  if not strings():
    pytest.skip(f"{SHARED} has no spec/transfers.json")
  assert len(strings()) >= 66
