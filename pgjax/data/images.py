"""How are images decoded and scaled, without TensorFlow?

Images are uint8 [H, W, 3] until `value_range`. Results are bit-equal to those of big_vision's
TensorFlow ops; resizing.py resizes. EXIF rotation is not applied, as there.
"""

import contextlib
import io
import os
import re
import struct
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from pgjax.data import signatures
from pgjax.data.sources import files
from pgjax.errors import UserError

MAX_PIXELS = 89_478_485  # A quarter of a GiB as RGB; also where Pillow begins to warn.
_ORIENTATION = 0x0112  # EXIF tag; 1: not rotated.
_BITS_PER_SAMPLE = 258  # TIFF tag.
# Pillow has many more, some of which start other programs (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_JPEG = b"\xff\xd8\xff"
_JPEG_MODES = ("L", "RGB", "CMYK")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # Pillow refuses those above 1 MiB.
_ALMOST_BLACK = 15  # Of 255: the brightest of 12 bits in a type of 16.
_DIM = 64  # A quarter of the range, which samples of 14 bits use in a type of 16.


def decode(encoded: bytes, *, precise: bool = False) -> np.ndarray:
  """Bytes of one of FORMATS -> uint8 [H, W, 3]; first frame, grey tripled, alpha dropped.

  A JPEG is decoded with libjpeg's fast integer DCT, TensorFlow's default. `precise` takes the
  accurate one, as Pillow and Hugging Face do: 78% of values differ, by up to 6 levels.

  The size is read from the header and refused above MAX_PIXELS before any pixel is decoded. Samples
  of 16 bits are scaled by their type, and so are floats from 0 to 1; other deep types are refused.
  """
  with _opened(encoded) as image:
    is_jpeg = encoded.startswith(_JPEG) and image.mode in _JPEG_MODES
    if precise or not is_jpeg:
      return _pixels(image)
    return _fast_jpeg(encoded, image)


def _fast_jpeg(encoded: bytes, image: Image.Image) -> np.ndarray:
  """uint8 [H, W, 3] of a JPEG that Pillow has opened; raises Pillow's errors."""
  colours = "CMYK" if image.mode == "CMYK" else "RGB"
  try:
    pixels = simplejpeg.decode_jpeg(encoded, colours, fastdct=True)
  except ValueError:
    accurate = _pixels(image)  # Raises if pixels are missing.
    try:
      pixels = simplejpeg.decode_jpeg(encoded, colours, fastdct=True, strict=False)
    except ValueError:
      return accurate  # A kind of JPEG that simplejpeg cannot read.
  return pixels if colours == "RGB" else _without_black(pixels, image)


def through_jpeg(image: np.ndarray, quality: int, *, fast: bool) -> np.ndarray:
  """uint8 [H, W, 3] encoded as JPEG at this quality and decoded with the fast or accurate DCT."""
  file = io.BytesIO()  # By Pillow, because simplejpeg has no accurate DCT for it.
  Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
  return simplejpeg.decode_jpeg(file.getvalue(), "RGB", fastdct=fast)


def _without_black(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
  """RGB of CMYK as in TensorFlow: Adobe's files have inverted inks."""
  inks = pixels.astype(np.int32)
  if "adobe" not in image.info:
    inks = 255 - inks
  return (inks[:, :, :3] * inks[:, :, 3:] // 255).astype(np.uint8)


def _pixels(image: Image.Image) -> np.ndarray:
  """uint8 [H, W, 3] of a Pillow image."""
  is_deep = _is_deep(image)
  if image.format == "GIF":
    pixels = _gif_pixels(image)
  elif _is_deep_grey(image):
    pixels = np.repeat(_grey_levels(image)[:, :, None], 3, axis=2)
  else:
    pixels = np.array(image.convert("RGB"))
  if is_deep and 0 < pixels.max() <= _ALMOST_BLACK:
    raise UserError(
      "the image has 16 bits or more a sample and uses less than 1/16 of their range, as a camera's"
      " 12 bits do in such a file, so it would be almost black; scale it to the whole range, or"
      " store it with 8 bits"
    )
  return pixels


def _gif_pixels(image: Image.Image) -> np.ndarray:
  """The first frame; black where it is transparent, as in TensorFlow."""
  pixels = np.array(image.convert("RGB"))
  if image.mode in ("P", "L"):
    pixels[np.asarray(image) == image.info.get("transparency", -1)] = 0
  return pixels


def _is_deep_grey(image: Image.Image) -> bool:
  return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_deep(image: Image.Image) -> bool:
  """Whether samples have more than 8 bits; of colours, Pillow keeps the upper byte of 16."""
  colours = image.format in ("PNG", "TIFF") and ";16" in str(image.tile)  # Until it is loaded.
  return colours or _is_deep_grey(image)


def _grey_levels(image: Image.Image) -> np.ndarray:
  """uint8 [H, W] of a grey image whose samples have more than 8 bits."""
  values = np.asarray(image)
  if image.mode == "F":
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
      raise UserError(
        f"the image has floating-point samples from {values.min():.4g} to {values.max():.4g}, and"
        " only 0 (black) to 1 (white) is defined; scale it, or store it with 8 bits"
      )
    return np.round(values * 255).astype(np.uint8)
  bits = 16
  if image.mode == "I" and image.format != "PPM":  # Pillow scales PPM to 16 bits.
    raise UserError(
      f"the image has signed or 32-bit samples from {values.min():,} to {values.max():,}, a type"
      " whose white is not defined; store it with 8 or 16 bits without a sign"
    )
  if image.format == "TIFF" and image.tag_v2.get(_BITS_PER_SAMPLE) in (12, (12,)):
    bits = 12
  return (values >> (bits - 8)).astype(np.uint8)


def is_dim(encoded: bytes, pixels: np.ndarray) -> bool:
  """Whether samples of more than 8 bits use less than a quarter of their range, as 14 bits do."""
  if not 0 < pixels.max() < _DIM:
    return False
  with _opened(encoded) as image:
    return _is_deep(image)


def is_flat(pixels: np.ndarray) -> bool:
  """Whether all pixels [H, W, C] are equal: an empty picture, or one whose values were clipped."""
  return bool((pixels == pixels[:1, :1]).all())


def encoded(image: Any) -> bytes | list[bytes]:
  """Encodes a path, bytes, a PIL image, uint8 [H, W, 3], or a list of these for `decode`."""
  if isinstance(image, list | tuple) and image:
    return [encoded(each) for each in image]
  if isinstance(image, bytes):
    return image
  if isinstance(image, str | os.PathLike):
    return files.file_bytes(os.path.expanduser(image))
  if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
    image = Image.fromarray(image) if image.size else image
  if not isinstance(image, Image.Image):
    shape = f" of {image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else ""
    raise UserError(
      "an image must be a path, the bytes of a file, a PIL image, a uint8 array [height, width, 3]"
      f" or a list of these, not {type(image).__name__}{shape}"
    )
  file = io.BytesIO()
  try:
    if image.mode.startswith("I;16"):
      image.save(file, "PNG")
    else:
      Image.fromarray(_pixels(image)).save(file, "PPM")
  except UserError:
    raise
  except (OSError, ValueError, SyntaxError) as error:
    raise UserError(f"the PIL image cannot be read ({error})") from None
  return file.getvalue()


def size(encoded: bytes) -> tuple[int, int]:
  """(width, height) in pixels, from the header; raises like `decode` for a damaged header."""
  with _opened(encoded) as image:
    return image.size


@contextlib.contextmanager
def _opened(encoded: bytes):
  """Pillow's image; any error becomes a UserError."""
  try:
    with Image.open(io.BytesIO(_without_texts(encoded)), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise UserError(_too_large(f"{width:,} x {height:,} = {width * height:,}"))
      yield image
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    pixels = re.search(r"\((\d+) pixels\)", str(error))
    raise UserError(_too_large(f"{int(pixels[1]):,}" if pixels else "too many")) from None
  except UserError:
    raise
  except Exception as error:  # Pillow raises any error of its decoders.
    reason = " ".join(str(error).split())
    reason = re.sub(r"<_io\.BytesIO.*?>", f"these {len(encoded):,} bytes", reason)
    raise UserError(f"the image cannot be decoded ({_fault(encoded, reason)}") from None


def _without_texts(encoded: bytes) -> bytes:
  """A PNG without its texts and colour profile, which change no pixel here."""
  if not encoded.startswith(_PNG):
    return encoded
  pieces, start, at = [], 0, len(_PNG)
  while at + 8 <= len(encoded):
    length, name = struct.unpack_from(">I4s", encoded, at)
    end = at + 12 + length
    if name in _PNG_TEXTS and end <= len(encoded):
      pieces.append(encoded[start:at])
      start = end
    at = end
  return b"".join([*pieces, encoded[start:]]) if pieces else encoded


def _fault(encoded: bytes, reason: str) -> str:
  """Why it cannot be decoded, by its first bytes, and what to do; the end of a sentence."""
  if not encoded.strip(b"\0"):
    what = f"its {len(encoded):,} bytes are all 0" if encoded else "the file is empty"
    return f"{what}); copy or download it again"
  if kind := signatures.of(encoded):
    return f"it is {kind.name}, not one of {', '.join(FORMATS)}); {kind.advice}"
  name = signatures.readable(encoded)
  return f"{name + ': ' if name else ''}{reason}); is the file damaged?"


def _too_large(pixels: str) -> str:
  return (
    f"the image declares {pixels} pixels, more than the {MAX_PIXELS:,} that are decoded; "
    "shrink or remove it"
  )


def value_range(image: np.ndarray, vmin, vmax, in_min, in_max) -> np.ndarray:
  """float32: vmin + (x - in_min) / (in_max - in_min) * (vmax - vmin), in this order."""
  in_min, in_max = np.asarray(in_min, np.float32), np.asarray(in_max, np.float32)
  out = image.astype(np.float32)
  out -= in_min
  out /= in_max - in_min
  out *= np.float32(vmax) - np.float32(vmin)
  out += np.float32(vmin)
  return out


def orientation(encoded: bytes) -> int:
  """The EXIF orientation, 1 to 8, which `decode` ignores; 1 if EXIF is missing or damaged."""
  try:
    with Image.open(io.BytesIO(_without_texts(encoded)), formats=FORMATS) as image:
      value = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # Pillow raises any error for what is not EXIF.
    return 1
  return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_rotated(encoded: bytes) -> bool:
  """Whether EXIF marks the image as rotated, which `decode` ignores."""
  return orientation(encoded) != 1
