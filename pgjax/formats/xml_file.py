"""How is XML from outside read? Elements, attributes and text only.

A document type is refused before its entities are expanded, as they can grow without bound or name
files; so are very deep files.
"""

import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from pgjax.errors import UserError
from pgjax.formats import input_files

MAX_BYTES = 64 << 20
MAX_DEPTH = 50


def read(path: str) -> ElementTree.Element:
  """The root element of a file; raises UserError with its line."""
  return parse(input_files.file_bytes(path, most=MAX_BYTES), path)


def parse(data: bytes, where: str) -> ElementTree.Element:
  """The root element of a document."""
  builder, depth = ElementTree.TreeBuilder(), 0
  parser = expat.ParserCreate()
  parser.buffer_text = True

  def start(name, attributes):
    nonlocal depth
    depth += 1
    if depth > MAX_DEPTH:
      raise UserError(f"{where}: its elements are nested more than {MAX_DEPTH} deep.")
    builder.start(name, attributes)

  def end(name):
    nonlocal depth
    depth -= 1
    builder.end(name)

  def refuse(*_):
    raise UserError(f"{where} declares a document type (<!DOCTYPE>), which is not read; remove it.")

  parser.StartElementHandler, parser.EndElementHandler = start, end
  parser.CharacterDataHandler = builder.data
  parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
  try:
    parser.Parse(data, True)
  except expat.ExpatError as error:
    reason = expat.errors.messages[error.code]
    raise UserError(f"{where}, line {error.lineno}: not XML ({reason}).") from None
  except (ValueError, LookupError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{where}: not XML that can be read ({error}).") from None
  return builder.close()
