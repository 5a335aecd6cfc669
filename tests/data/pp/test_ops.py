import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from pgjax.data import images, resizing, tokenizer
from pgjax.data.pp import parse
from pgjax.errors import UserError


def png(pixels, mode=None):
  out = io.BytesIO()
  Image.fromarray(pixels, mode).save(out, "png")
  return out.getvalue()


def png_header(width, height):
  """A PNG that declares a size and has no pixels."""
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    for name, data in chunks
  )


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def example(**values):
  return {"_seed": (0, 1, 2, 3), "_epoch": 0, **values}


# Decoding


def test_grey_is_tripled_and_alpha_dropped():
  grey, colour = noise(4, 5), noise(4, 5, 4)
  np.testing.assert_array_equal(images.decode(png(grey)), np.repeat(grey[:, :, None], 3, 2))
  np.testing.assert_array_equal(images.decode(png(colour)), colour[:, :, :3])


def test_sixteen_bit_grey_becomes_its_upper_byte():
  deep = np.array([[0, 255, 256, 65535]], np.uint16)
  assert images.decode(png(deep))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_of_an_animation_the_first_frame_is_taken():
  frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
  out = io.BytesIO()
  frames[0].save(out, "gif", save_all=True, append_images=frames[1:])
  assert images.decode(out.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(100_000, 100_000), (10_000, 9_000), (15_000, 9_000)])
def test_a_huge_declared_size_is_refused_from_the_header(size):
  with pytest.raises(UserError, match="pixels, more than the 89,478,485"):
    images.decode(png_header(*size))


@pytest.mark.parametrize(
  "damaged", [png(noise(9, 9))[:60], b"not an image", png(noise(9, 9))[:-30] + b"\0" * 30]
)
def test_a_damaged_image_raises_one_sentence(damaged):
  with pytest.raises(
    UserError, match=r"^the image cannot be decoded \(.*\); is the file damaged\?$"
  ):
    images.decode(damaged)


# Resizing, against jax.image.resize, which has the same definition


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(24, 24), (7, 31), (90, 50), (33, 60)])
def test_resize_equals_the_reference(antialias, size):
  image = noise(33, 60, 3)
  reference = np.asarray(
    jax.image.resize(image.astype(np.float32), (*size, 3), "bilinear", antialias=antialias)
  )
  as_float = resizing.resize(image.astype(np.float32), *size, antialias=antialias)
  np.testing.assert_allclose(as_float, reference, atol=2e-3)
  as_bytes = resizing.resize(image, *size, antialias=antialias)
  assert as_bytes.dtype == np.uint8
  clear = np.abs(reference - np.round(reference)) > 1e-2  # Not at the edge of the truncation.
  assert clear.mean() > 0.5 or size == image.shape[:2]
  np.testing.assert_array_equal(as_bytes[clear], np.floor(reference)[clear])


@pytest.mark.parametrize("size", [(24, 24), (7, 31), (90, 50)])
def test_bicubic_is_antialiased_and_rounds(size):
  image = noise(33, 60, 3)
  resized = parse.parse(f'resize({size}, method="bicubic")')({"image": image})["image"]
  reference = jax.image.resize(image.astype(np.float32), (*size, 3), "cubic", antialias=True)
  reference = np.clip(np.round(reference), 0, 255)
  assert resized.dtype == np.uint8
  difference = np.abs(resized - reference)
  inside = (reference > 0) & (reference < 255)  # Pillow clips between its two passes as well.
  assert (difference[inside] == 0).mean() > 0.5
  assert np.median(difference) <= 1
  assert difference.mean() < 1


def test_bicubic_takes_bytes_only():
  with pytest.raises(UserError, match=r"not float32; put resize before value_range"):
    parse.parse('value_range|resize(8, method="bicubic")')({"image": noise(9, 9, 3)})


def test_an_image_of_the_right_size_is_returned_unchanged():
  image = noise(8, 9, 3)
  assert resizing.resize(image, 8, 9, antialias=True) is image
  assert resizing.resize_pillow_bicubic(image, 8, 9) is image


def test_value_range_maps_bytes_to_minus_one_and_one():
  out = images.value_range(np.array([0, 51, 255], np.uint8), -1, 1, 0, 255.0)
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, [-1, -0.6, 1], atol=1e-6)


# Reading the op string


def test_arguments_are_literals_and_backslash_n_is_a_newline():
  done = parse.parse('strfmt("a\\nb {x}", outkey="y")')(example(x="X"))
  assert done["y"] == "a\nb X"


def test_an_unknown_op_is_answered_with_a_guess():
  with pytest.raises(UserError, match=r"no 'resise'. Did you mean 'resize'"):
    parse.parse("decode|resise(224)")


@pytest.mark.parametrize(
  ("pp", "message"),
  [
    ("resize(224", "cannot be read; write name or name"),
    ("resize(__import__('os').getcwd())", "size must be"),
    ("resize(lambda: 1)", "size must be"),
    ("a.b()", "cannot be read"),
    ("resize()", "missing a required argument: 'size'"),
    ("resize(224, antialis=True)", "no argument 'antialis'. Did you mean 'antialias'"),
    ("resize(224, method='box')", "'mitchellcubic', not 'box'"),
    ("inception_crop(224, method='cubic')", "'mitchellcubic', not 'cubic'"),
    ("resize(-1)", "size must be a whole number from 1 to 2048 or .*, not -1"),
    ("decode(4)", "channels must be 3, not 4"),
    ("tok(key='prefix')", "needs a tokenizer"),
    ("value_range(0, 0, 0, 0)", "in_min=0 and in_max=0 must differ"),
    ("value_range(0, 1, 999_999, 999_999.001)", "must differ"),  # As float32 they do not.
    ("value_range(1e400)", "vmin must be a number from -1000000.0 to 1000000.0, not 1e400"),
    ("inception_crop(area_min=60, area_max=50)", "must not be above"),
    ("strfmt('{')", "braces only around names"),
    ("strfmt('{}')", "braces only around names"),
    ("tolen(4)", "takes key="),
    ("choice", "takes key="),
    ("choice(inkey=['a', 'b'], outkey=['x'])", "a name for each of the 2"),
    ("masked_concat(['a', 'b'], mask=[1])", "mask must have one number for each of the 2"),
  ],
)
def test_a_mistake_in_the_op_string_raises_when_it_is_parsed(pp, message):
  with pytest.raises(UserError, match=message):
    parse.parse(pp)


def test_numbers_that_grow_with_each_op_are_refused_before_they_are_nan():
  pp = "|".join(["value_range(-1000000, 1000000, 0, 0.00001)"] * 5)
  with pytest.raises(UserError, match="too large for float32"):
    parse.parse(pp)(example(image=noise(4, 4, 3)))


@pytest.mark.parametrize(
  ("pp", "values", "message"),
  [
    ("reshape([2], key='x')", dict(x=[1, 2, 3]), "cannot reshape array of size 3"),
    ("lower(key='x')", dict(x=3), "'x' is neither"),
  ],
)
def test_a_value_that_an_op_cannot_take_is_reported(pp, values, message):
  with pytest.raises(UserError, match=message):
    parse.parse(pp)(example(**values))


def test_a_bar_inside_a_string_does_not_end_an_op():
  done = parse.parse("strfmt('a|{x}|', outkey='y') | copy('y', 'z')")(example(x="X"))
  assert done["z"] == "a|X|"


def test_a_missing_name_raises_with_the_names_of_the_example():
  with pytest.raises(UserError, match="needs 'question', and the example has only: answer, image"):
    parse.parse('copy("question", "prefix")')(example(image=0, answer="b"))


# Single ops


@pytest.mark.parametrize(
  ("pp", "before", "after"),
  [
    ('strfmt("n={n} f={f} v={a/b} s={s}")', dict(n=3, f=0.5, s="{x}", **{"a/b": np.arange(3)}),
     dict(text="n=3 f=0.5 v=[0 1 2] s={x}")),
    ("lower(key='s')", dict(s="ÄBc"), dict(s="Äbc")),
    ("lower(key='s')", dict(s=["A", "b"]), dict(s=["a", "b"])),
    ("setdefault('s', '')", dict(), dict(s="")),
    ("setdefault('s', 'x')", dict(s=[]), dict(s="x")),
    ("setdefault('s', 'x')", dict(s="y"), dict(s="y")),
    ("keep('a', 'zz')", dict(a=1, b=2), dict(a=1)),
    ("drop('a', 'zz')", dict(a=1, b=2), dict(b=2)),
    ("flatten", dict(a=dict(b=dict(c=1), d=2), e=3), {"a/b/c": 1, "a/d": 2, "e": 3}),
    ("flatten(['x'])", dict(a=dict(b=1), x=dict(y=2)), {"a": {"b": 1}, "x/y": 2}),
    ("reshape([], key='q')", dict(q=np.array(["one"])), dict(q="one")),
    ("copy('a', 'b')", dict(a=1), dict(a=1, b=1)),
  ],
)  # fmt: skip
def test_values_by_hand(pp, before, after):
  done = parse.parse(pp)(example(**before))
  changed = {key: value for key, value in done.items() if key in after}
  assert changed == after
  if pp.startswith(("keep", "drop", "flatten")):
    assert {key for key in done if not key.startswith("_")} == set(after)


def test_tok_pads_cuts_and_keeps_a_sticky_eos():
  tiny = tokenizer.load("tiny")
  a, b = tiny.encode("a")[0], tiny.encode("b")[0]

  def tok(arguments):
    pp = f'tok(inkey="s", outkey="ids", {arguments})'
    return parse.parse(pp, tokenizer=tiny)(example(s="ab"))["ids"].tolist()

  assert tok('bos="yes", eos="yes"') == [2, a, b, 1]
  assert tok('length=6, bos="yes", eos="yes"') == [2, a, b, 1, 0, 0]
  assert tok('length=2, bos="yes", eos="yes"') == [2, a]
  assert tok('length=2, bos="yes", eos="sticky"') == [2, 1]


# Random ops


def rng_of(*seed):
  return dict(_seed=seed, _epoch=0)


def test_a_random_op_is_a_function_of_the_seed():
  pp = parse.parse("flip_lr|flip_ud|random_shift(3)|inception_crop(16, area_min=30)")
  image = noise(20, 20, 3)
  once, again, other = (pp({"image": image, **rng_of(0, 1, 2, n)})["image"] for n in (0, 0, 1))
  np.testing.assert_array_equal(once, again)
  assert not np.array_equal(once, other)


def test_flips_and_shifts_move_pixels_without_making_new_ones():
  image = noise(6, 7, 3)
  flipped = parse.parse("flip_lr(1.0)")({"image": image, **rng_of(0)})["image"]
  np.testing.assert_array_equal(flipped, image[:, ::-1])
  flipped = parse.parse("flip_ud(1.0)")({"image": image, **rng_of(0)})["image"]
  np.testing.assert_array_equal(flipped, image[::-1])
  for seed in range(20):
    shifted = parse.parse("random_shift(2)")({"image": image, **rng_of(seed)})["image"]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = [padded[i : i + 6, j : j + 7] for i in range(5) for j in range(5)]
    assert any(np.array_equal(shifted, window) for window in windows)


def test_inception_crop_is_a_window_within_its_limits():
  image = np.stack(np.meshgrid(np.arange(40), np.arange(50), [0, 1, 2], indexing="ij")[:2] * 2, -1)
  image = image[:, :, 0, :3].astype(np.uint8)  # A pixel holds its own row and column.
  for seed in range(30):
    window = parse.parse("inception_crop(area_min=50)")({"image": image, **rng_of(seed)})["image"]
    height, width = window.shape[:2]
    assert 0.45 <= height * width / 2000 <= 1
    assert 0.7 <= width / height <= 1.4 or (height, width) == (40, 50)
    top, left = window[0, 0, :2]
    np.testing.assert_array_equal(window, image[top : top + height, left : left + width])


def test_all_frames_of_an_example_change_alike():
  image = noise(9, 9, 3)
  pp = parse.parse("random_shift(4)|flip_lr")
  first, second = pp({"image": [image, image], **rng_of(5)})["image"]
  np.testing.assert_array_equal(first, second)


def test_choice_takes_the_same_index_for_all_names():
  pp = parse.parse('choice(inkey=["a", "b"], outkey=["x", "y"])')
  picked = {pp({"a": [0, 1, 2], "b": ["0", "1", "2"], **rng_of(s)})["x"] for s in range(30)}
  assert picked == {0, 1, 2}
  done = pp({"a": [0, 1, 2], "b": ["0", "1", "2"], **rng_of(3)})
  assert str(done["x"]) == done["y"]
  assert parse.parse('choice(2, key="a")')({"a": [5, 3], **rng_of(1)})["a"] == [5, 3]


def test_choice_no_replacement_takes_each_once_in_as_many_epochs():
  pp = parse.parse('choice_no_replacement(key="a")')
  seen = [pp({"a": list("wxyz"), "_seed": (0, 1, 2, e), "_epoch": e})["a"] for e in range(12)]
  assert all(set(seen[i : i + 4]) == set("wxyz") for i in (0, 4, 8))
  assert len({tuple(seen[i : i + 4]) for i in (0, 4, 8)}) > 1


def test_null_stays_null_in_lower_and_is_refused_by_strfmt():
  assert parse.parse('lower(key="a")')(example(a=None))["a"] is None
  assert parse.parse('lower(key="a")')(example(a=["B", None]))["a"] == ["b", None]
  with pytest.raises(UserError, match=r"'a' is null; setdefault\('a', '...'\) before strfmt"):
    parse.parse('strfmt("{a}")')(example(a=None))
  assert parse.parse('setdefault("a", "x")|strfmt("{a}")')(example(a=None))["text"] == "x"


def test_bytes_that_are_no_text_are_refused_by_strfmt():
  with pytest.raises(UserError, match="'a' is bytes that are no UTF-8 text"):
    parse.parse('strfmt("{a}")')(example(a=b"\xff"))
