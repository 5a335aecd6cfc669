"""TFRecord without its library; what it reads is in tests/datasets/test_from_tfrecord.py."""

import sys

import pytest

from pgjax.errors import UserError
from pgjax.formats import tfrecord


def test_without_its_library_the_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "google_crc32c", None)
  with pytest.raises(UserError, match="pip install google-crc32c"):
    tfrecord.crc32c()
