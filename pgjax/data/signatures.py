"""What is a file that is no image, or no text, by its first bytes?"""

import re
from typing import NamedTuple


class Kind(NamedTuple):
  """What a file is, and what to do if it was to be an image, or a file of examples."""

  name: str
  advice: str = "convert it to PNG or JPEG"
  as_rows: str = ""


_BRANDS = {  # Of ISO media files.
  ("avif", "avis"): Kind("an AVIF image"),
  ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"): Kind("an HEIC image"),
  ("crx ",): Kind("a camera's raw image (CR3)"),
  ("jp2 ", "jpx "): Kind("a JPEG 2000 image"),
  ("isom", "iso2", "mp41", "mp42", "avc1", "M4V ", "qt  ", "3gp4", "3gp5"): Kind(
    "a video", "store its frames as PNG or JPEG"
  ),
}
_FIRST_BYTES = (
  (b"version https://git-lfs", Kind("a Git LFS pointer, not the file itself", "run git lfs pull",
                                    "; run git lfs pull")),
  (b"\0\0\0\x0cjP  \r\n\x87\n", Kind("a JPEG 2000 image")),
  (b"\xff\x4f\xff\x51", Kind("a JPEG 2000 image")),
  (b"\0\0\0\x0cJXL \r\n\x87\n", Kind("a JPEG XL image")),
  (b"\xff\x0a", Kind("a JPEG XL image")),
  (b"%PDF", Kind("a PDF document")),
  (b"%!PS", Kind("a PostScript file")),
  (b"\xc5\xd0\xd3\xc6", Kind("a PostScript file")),
  (b"8BPS", Kind("a Photoshop document")),
  (b"gimp xcf", Kind("a GIMP image")),
  (b"\x76\x2f\x31\x01", Kind("an OpenEXR image")),
  (b"#?RADIANCE", Kind("a Radiance HDR image")),
  (b"DDS ", Kind("a DDS texture")),
  (b"\0\0\1\0", Kind("an icon (ICO)")),
  (b"\x93NUMPY", Kind("a NumPy array")),
  (b"\x89HDF", Kind("an HDF5 file")),
  (b"PAR1", Kind("a Parquet file", "store its images as files",
                 '; datasets.load_dataset("parquet", data_files=FILE) reads it: store each image as'
                 " a file and write such lines")),
  (b"ARROW1", Kind("an Arrow file", "store its images as files", "; convert it to such lines")),
  (b"PK\x03\x04", Kind("a ZIP archive", "unpack it", "; unpack it")),
  (b"\x1f\x8b", Kind("a gzip file", "unpack it", "; unpack it")),
  (b"7z\xbc\xaf", Kind("a 7z archive", "unpack it", "; unpack it")),
  (b"\x1aE\xdf\xa3", Kind("a video (Matroska or WebM)", "store its frames as PNG or JPEG")),
)  # fmt: skip
_READ = (  # Formats that images.decode reads, for a file that is damaged.
  (b"\xff\xd8\xff", "a JPEG"),
  (b"\x89PNG\r\n\x1a\n", "a PNG"),
  (b"GIF8", "a GIF"),
  (b"BM", "a BMP"),
  (b"II*\0", "a TIFF"),
  (b"MM\0*", "a TIFF"),
)


def of(data: bytes) -> Kind | None:
  """The kind of a file that is neither an image that is decoded nor plain text."""
  for first, kind in _FIRST_BYTES:
    if data.startswith(first):
      return kind
  if data[4:8] == b"ftyp":
    brand = data[8:12].decode("latin-1")
    for brands, kind in _BRANDS.items():
      if brand in brands:
        return kind
    return Kind(f"an ISO media file of the brand {brand!r}")
  if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
    return Kind("a video (AVI)", "store its frames as PNG or JPEG")
  if data[128:132] == b"DICM":
    return Kind("a DICOM file")
  start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  if start.startswith((b"<!doctype html", b"<html", b"<head")):
    return Kind("an HTML page", "it may be the error page of a download: download it again")
  if start.startswith(b"<svg") or re.match(rb"<(\?xml|!--|!doctype svg).*?<svg", start, re.DOTALL):
    return Kind("an SVG drawing")
  return Kind("an XML file") if start.startswith(b"<?xml") else None


def readable(data: bytes) -> str:
  """ "a PNG", for the formats that are decoded; else ""."""
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    return "a WebP"
  return next((name for first, name in _READ if data.startswith(first)), "")
