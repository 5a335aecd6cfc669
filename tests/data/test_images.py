"""Each type of pixels becomes the right levels or is refused; other files are named."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pgjax.data import images
from pgjax.errors import UserError

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = LEVELS.astype(np.uint16) * 257


def saved(image, format, **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def grey(array, format="TIFF", **options):
  return saved(Image.fromarray(array), format, **options)


def wide_rgb(array, name="PNG"):
  """16 bits a sample, RGB, which Pillow does not write."""
  big = array.astype(">u2")
  rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).tobytes() for row in big)
  header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
  chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
  return images._PNG + b"".join(chunk(*c) for c in chunks)  # noqa: SLF001


def chunk(name, data):
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def pgm(array, maximum):
  header = f"P5 {array.shape[1]} {array.shape[0]} {maximum}\n".encode()
  return header + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
  "encoded",
  [
    grey(LEVELS),
    grey(WIDE),
    grey(WIDE, "PNG"),
    wide_rgb(WIDE),
    grey(LEVELS.astype(np.float32) / 255),
    pgm(WIDE, 65535),
    pgm(LEVELS * np.uint16(16), 4080),
  ],
  ids=["uint8", "uint16", "PNG of 16 bits", "RGB of 16 bits", "float", "PGM", "PGM of 12 bits"],
)
def test_levels_are_scaled_by_their_type(encoded):
  pixels = images.decode(encoded)
  np.testing.assert_allclose(pixels[:, :, 0], LEVELS, atol=1)
  assert (pixels[:, :, :1] == pixels).all()


@pytest.mark.parametrize(
  ("encoded", "message"),
  [
    (grey(LEVELS.astype(np.uint16) * 16), "less than 1/16 of their range"),
    (grey(LEVELS.astype(np.uint16) * 16, "PNG"), "less than 1/16 of their range"),
    (wide_rgb(LEVELS.astype(np.uint16) * 4), "less than 1/16 of their range"),
    (grey(LEVELS.astype(np.int32) * 200), "signed or 32-bit samples from 0 to 51,000"),
    (grey(LEVELS.astype(np.int32)), "32-bit samples from 0 to 255"),
    (grey(LEVELS.astype(np.float32)), "floating-point samples from 0 to 255"),
    (grey(np.float32(LEVELS) / 255 - 0.5), "from -0.5 to 0.5"),
    (grey(np.float32(LEVELS) * np.float32(np.nan)), "from nan to nan"),
    (grey(np.float32(LEVELS) / 255 / 100), "almost black"),
  ],
)
def test_levels_without_a_defined_white_are_refused(encoded, message):
  with pytest.raises(UserError, match=message):
    images.decode(encoded)


def test_a_pillow_image_is_scaled_or_refused_like_a_file():
  floats = Image.fromarray(LEVELS.astype(np.float32) / 255)
  np.testing.assert_array_equal(images.decode(images.encoded(floats))[:, :, 0], LEVELS)
  wide = Image.fromarray(WIDE)
  np.testing.assert_array_equal(images.decode(images.encoded(wide))[:, :, 0], LEVELS)
  with pytest.raises(UserError, match="32-bit samples"):
    images.encoded(Image.fromarray(LEVELS.astype(np.int32) * 200))


def test_a_black_picture_of_16_bits_is_decoded_and_flat():
  pixels = images.decode(grey(np.zeros((4, 4), np.uint16)))
  assert images.is_flat(pixels)
  pixels[1, 2, 1] = 1
  assert not images.is_flat(pixels)


def test_a_large_profile_or_text_of_a_png_is_passed_over():
  picture = Image.fromarray(LEVELS).convert("RGB")
  texts = PngImagePlugin.PngInfo()
  for i in range(80):  # Above Pillow's limits for one and for all.
    texts.add_text(f"key{i}", "x" * (2 << 20 if i == 0 else 1 << 20), zip=True)
  texts.add_itxt("more", "y" * (2 << 20), zip=True)
  for options in (dict(pnginfo=texts), dict(icc_profile=b"\0" * (3 << 20))):
    encoded = saved(picture, "PNG", **options)
    np.testing.assert_array_equal(images.decode(encoded), np.array(picture))
    assert images.size(encoded) == (16, 16)
    assert not images.is_rotated(encoded)


def with_exif(exif):
  """A PNG with this eXIf chunk."""
  png = saved(Image.fromarray(LEVELS), "PNG")
  return png[:33] + chunk(b"eXIf", exif) + png[33:]


@pytest.mark.parametrize("exif", [b"nonsense....", b"", b"MM\0*\0\0\0\x08\0\x01", b"II*\0" * 9])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_odd_exif_is_no_rotation(exif, format):
  picture = Image.fromarray(LEVELS).convert("RGB")
  encoded = with_exif(exif) if format == "PNG" else saved(picture, format, exif=exif)
  assert images.decode(encoded).shape == (16, 16, 3)
  assert images.orientation(encoded) == 1
  assert not images.is_rotated(encoded)


def test_the_orientation_is_read_where_it_is_valid():
  exif = Image.Exif()
  for value, expected in ((6, 6), (1, 1), (0, 1), (99, 1)):
    exif[0x0112] = value
    encoded = saved(Image.fromarray(LEVELS), "JPEG", exif=exif)
    assert images.orientation(encoded) == expected
    assert images.is_rotated(encoded) == (expected != 1)


def ftyp(brand):
  return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + b"\0" * 40


@pytest.mark.parametrize(
  ("data", "what"),
  [
    (b"", "the file is empty"),
    (b"\0" * 500, "its 500 bytes are all 0"),
    (ftyp(b"heic"), "an HEIC image"),
    (ftyp(b"avif"), "an AVIF image"),
    (ftyp(b"isom"), "a video"),
    (ftyp(b"jp2 "), "a JPEG 2000 image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n" + ftyp(b"jp2 "), "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "an SVG drawing"),
    (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer.*git lfs pull"),
    (b"%PDF-1.7", "a PDF document"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
    (b"\0" * 128 + b"DICM", "a DICOM file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x93NUMPY\x01", "a NumPy array"),
    (saved(Image.fromarray(LEVELS), "JPEG")[:200], "a JPEG: .*is the file damaged"),
    (grey(LEVELS, "PNG")[:50], "a PNG: .*is the file damaged"),
    (saved(Image.fromarray(LEVELS), "WEBP")[:60], "a WebP: .*is the file damaged"),
    (saved(Image.fromarray(LEVELS), "BMP")[:300], "a BMP: .*is the file damaged"),
    (b"GIF89a", "a GIF: .*is the file damaged"),
    (b"anything", "cannot identify.*is the file damaged"),
  ],
)
def test_a_file_that_is_not_decoded_is_named_by_its_first_bytes(data, what):
  with pytest.raises(UserError, match=rf"^the image cannot be decoded \((it is )?{what}"):
    images.decode(data)


def test_colours_palettes_and_frames_are_as_pillow_decodes_them():
  colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
  for encoded in (
    saved(colours.convert("CMYK"), "JPEG"),
    saved(colours.convert("CMYK"), "TIFF"),
    saved(colours.convert("P"), "PNG"),
    saved(colours.convert("1"), "PNG"),
    saved(colours.convert("LA"), "PNG"),
    saved(colours, "GIF", save_all=True, append_images=[colours.rotate(90)]),
    saved(colours, "WEBP", save_all=True, append_images=[colours.rotate(90)]),
    saved(colours, "PNG", save_all=True, append_images=[colours.rotate(90)]),
    saved(colours, "MPO", save_all=True, append_images=[colours.rotate(90)]),
    saved(colours, "TIFF", save_all=True, append_images=[colours.rotate(90)]),
  ):
    with Image.open(io.BytesIO(encoded)) as image:
      pixels = images.decode(encoded, precise=True)
      np.testing.assert_array_equal(pixels, np.array(image.convert("RGB")))


def test_twelve_bits_of_a_tiff_are_scaled_by_their_number():
  """Three bytes for two samples, as cameras write them."""
  levels = LEVELS.astype(np.uint32) * 16
  first, second = levels[:, 0::2].ravel(), levels[:, 1::2].ravel()
  packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
  tags = {256: 16, 257: 16, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 16, 279: packed.size}
  tags[273] = 8 + 2 + 12 * len(tags) + 4  # Behind the header and the tags.
  entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
  header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
  encoded = header + packed.astype(np.uint8).tobytes()
  np.testing.assert_array_equal(images.decode(encoded)[:, :, 0], LEVELS)
