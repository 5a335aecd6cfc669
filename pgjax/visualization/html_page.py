"""What do the pages of pgjax share? One file each, one style for light and dark, nothing loaded.

The policy of a page allows only embedded pictures, this style and the given script, by their hash.
"""

import base64
import hashlib
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = pathlib.Path(__file__).with_name("page.css").read_text()


def page(title: str, facts: Mapping[str, Any], body: str, script: str = "") -> str:
  """The page: the title, the facts below it, and `body`, which is HTML."""
  head = (
    '<meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f"<title>{text(title)}</title><style>{STYLE}</style>"
  )
  code = f"<script>{script}</script>" if script else ""
  header = f"<header><h1>{text(title)}</h1>{facts_list(facts)}</header>"
  body = f"{header}<main>{body}</main>{code}"
  return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def facts_list(facts: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> str:
  """Names and values in two columns; names may repeat in a sequence; "" without facts."""
  pairs = facts.items() if isinstance(facts, Mapping) else facts
  rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
  return f"<dl>{rows}</dl>" if rows else ""


def text(value: Any) -> str:
  """Escaped."""
  return html.escape(str(value))


def _policy(script: str) -> str:
  style, code = (
    base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (STYLE, script)
  )
  allowed = f"'sha256-{code}'" if script else "'none'"
  return (
    f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src {allowed};"
    " base-uri 'none'; form-action 'none'"
  )
