"""Checksums are those of NumPy on every mesh, and depend on the order of the elements."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pgjax.checkpoints import checksums

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.int8, np.uint8)
SHAPES = ((), (7,), (3, 5), (8, 129), (2, 300, 257), (70_001,))


def numbers(shape, dtype, seed=0):
  return np.random.default_rng(seed).integers(-100, 100, shape).astype(dtype)


def on_devices(x):
  return int(checksums.jitted_checksums()({"x": x})["x"])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_jax_and_numpy_agree(dtype):
  for shape in SHAPES:
    x = numbers(shape, dtype)
    assert on_devices(jnp.asarray(x)) == checksums.checksum([x]), shape


def test_blocks_and_shards_make_no_difference(monkeypatch):
  monkeypatch.setattr(checksums, "_PIECE", 1 << 17)
  x = numbers((16, 25_001), np.float32)
  whole = checksums.checksum([x])
  assert checksums.checksum([x[:3], x[3:4], x[4:]]) == whole
  mesh = Mesh(np.array(jax.devices()).reshape(-1), ("data",))
  assert on_devices(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))) == whole


def test_the_sum_is_by_its_definition():
  x = np.array([3, 5], np.uint8)

  def factor(i):
    mixed = i * 0x9E3779B1 % 2**32
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA6B % 2**32
    return (mixed ^ mixed >> 13) | 1

  expected = sum(int(v) * factor(i) * factor(2**16) for i, v in enumerate(x)) % 2**32
  assert checksums.checksum([x]) == expected


@pytest.mark.parametrize("columns", [1, 3, 1 << 15, 1 << 16])
def test_rows_in_another_order_have_another_sum(columns):
  """Also of float32 values of bfloat16 precision, whose low bits are all 0."""
  x = numbers((6, columns), np.float32) + np.arange(6, dtype=np.float32)[:, None] * 256
  swapped = x[[0, 3, 2, 1, 4, 5]]
  assert checksums.checksum([swapped]) != checksums.checksum([x])
  assert on_devices(jnp.asarray(swapped)) != on_devices(jnp.asarray(x))
  assert checksums.checksum([swapped], ordered=False) == checksums.checksum([x], ordered=False)


def test_every_flipped_bit_changes_the_sum():
  x = numbers((40,), np.float32)
  whole = checksums.checksum([x])
  for bit in range(8 * x.nbytes):
    data = bytearray(x.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    assert checksums.checksum([np.frombuffer(data, np.float32)]) != whole
