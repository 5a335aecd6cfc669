"""Who may ask the demo's page, and which files does it read?

Guard wraps the whole web application. It answers only under the address that the page
is served at, only to that page itself, and only the routes that the page uses. Uploads remembers
the files that each browser has uploaded in this run; no other file is read for a request.
"""

import json
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import cookies
from typing import Any

from pgjax.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COOKIE = "pgjax_demo"
MOST_REQUEST_BYTES = 1 << 20  # Of a request that is no upload.
_SLACK_BYTES = 1 << 16  # What a form adds to its file.
_FILE = re.compile(r"(?:/gradio_api)?/file[=/](.*)", re.DOTALL)
_UPLOAD = re.compile(r"(?:/gradio_api)?/upload/?")
_ROUTES = re.compile(
  r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(?:assets|static|svelte)/.*"
  r"|/gradio_api/(?:info|config|startup-events|app_id|upload|upload_progress|queue/join|queue/data"
  r"|reset|cancel|theme\.css|heartbeat/\w+)/?"
)


class Uploads:
  """The files that were uploaded in this run, by the browser that uploaded them."""

  def __init__(self, folder: pathlib.Path, most_bytes: int):
    """folder: where the web application stores them; nobody else may write there."""
    self.folder, self.most_bytes = pathlib.Path(os.path.realpath(folder)), most_bytes
    self._owners: dict[str, set[str]] = {}

  def add(self, paths: Iterable[Any], owner: str) -> None:
    """Remembers what the application reports as stored."""
    for path in paths:
      if isinstance(path, str):
        self._owners.setdefault(path, set()).add(owner)

  def read(self, path: Any, owner: str) -> bytes:
    """The bytes of an upload of this owner; raises UserError for any other path."""
    if not isinstance(path, str) or owner not in self._owners.get(path, ()):
      raise UserError("This image is no upload of yours to this page; upload it again.")
    if not self.holds(path):
      raise UserError("This upload is no file any more; upload it again.")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
      content = file.read(self.most_bytes + 1)
    if len(content) > self.most_bytes:
      raise UserError(f"The file has over {self.most_bytes:,} bytes, the most that are accepted.")
    return content

  def holds(self, path: str) -> bool:
    """Whether this is a regular file in the folder, by no link."""
    try:
      real = os.path.realpath(path, strict=True)
      regular = stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
      return False
    return regular and pathlib.Path(real).is_relative_to(self.folder)

  def may_see(self, path: str, owner: str) -> bool:
    """Whether the page may show it: an upload of this owner, or a picture that it was answered."""
    return owner in self._owners.get(path, {owner}) and self.holds(path)


class Guard:
  """An ASGI application around another; see the module's docstring."""

  def __init__(self, app: Any, uploads: Uploads, host: str, port: int):
    self._app, self._uploads = app, uploads
    names = (host, "localhost")
    self._hosts = {*names, *(f"{name}:{port}" for name in names)}
    self._address = f"http://{host}:{port}"

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes a request on, or answers it with a sentence and a status of 4xx."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    if scope["type"] != "http":  # The page uses no web sockets.
      await send({"type": "websocket.close", "code": 1008})
      return
    headers = {name.lower(): value for name, value in _texts(scope["headers"])}
    owner = _owner(headers.get("cookie", ""))
    if refusal := self._refusal(scope, headers, owner):
      await _answer(send, *refusal)
      return
    token = secrets.token_urlsafe() if not owner and scope["path"] == "/" else ""
    await self._app(scope, receive, self._sending(scope, send, owner, token))

  def _refusal(self, scope: Scope, headers: dict[str, str], owner: str) -> tuple[int, str] | None:
    """(status, sentence) of a request that is not passed on."""
    hosts = [value for name, value in _texts(scope["headers"]) if name.lower() == "host"]
    if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
      return 400, f"This page answers only at {self._address}."
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    same = {f"http://{hosts[0].lower()}"}
    referer = re.match(r"https?://[^/?#]*", headers.get("referer", ""), re.IGNORECASE)
    sent_from = origin if origin is not None else referer and referer[0]
    plain_visit = scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
    foreign = sent_from is not None and sent_from.lower() not in same
    if (foreign or site not in ("same-origin", "none")) and not (plain_visit and origin is None):
      return 403, "Only the page itself may ask; this request comes from another site."
    if scope["method"] not in ("GET", "HEAD", "POST"):
      return 405, "Only GET, HEAD and POST are allowed."
    path = scope["path"]
    if shown := _FILE.fullmatch(path):
      return None if self._uploads.may_see(shown[1], owner) else (403, "This file is not shown.")
    if not _ROUTES.fullmatch(path) or "\\" in path or ".." in path.split("/"):
      return 404, "The page has no such address."
    if scope["method"] == "POST":
      most = (
        self._uploads.most_bytes + _SLACK_BYTES if _UPLOAD.fullmatch(path) else MOST_REQUEST_BYTES
      )
      length = headers.get("content-length", "")
      if not length.isdecimal():
        return 411, "A request with content must declare its length."
      if int(length) > most:
        return 413, f"The request exceeds the maximum allowed size of {most:,} bytes."
    return None

  def _sending(self, scope: Scope, send: Send, owner: str, token: str) -> Send:
    """`send` without permissions for other sites; sets the cookie, and remembers uploads."""
    uploading = scope["method"] == "POST" and _UPLOAD.fullmatch(scope["path"])
    status, chunks = 0, []

    async def sending(message: MutableMapping[str, Any]) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
        fields = [
          (name, value)
          for name, value in message.get("headers", ())
          if not name.lower().startswith(b"access-control-")
        ]
        fields += [(b"x-frame-options", b"DENY"), (b"cross-origin-resource-policy", b"same-origin")]
        if token:
          cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
          fields.append((b"set-cookie", cookie.encode()))
        message = {**message, "headers": fields}
      elif uploading and message["type"] == "http.response.body":
        chunks.append(message.get("body", b""))
        if status == 200 and not message.get("more_body"):
          self._remember(b"".join(chunks), owner)
      await send(message)

    return sending

  def _remember(self, body: bytes, owner: str) -> None:
    try:
      paths = json.loads(body)
    except ValueError:
      return
    self._uploads.add(paths if isinstance(paths, list) else (), owner)


def owner_of(headers: Any) -> str:
  """The owner of uploads, from a request's headers; "" for a program without cookies."""
  return _owner(headers.get("cookie", ""))


def _owner(header: str) -> str:
  try:
    found = cookies.SimpleCookie(header).get(COOKIE)
  except cookies.CookieError:
    return ""
  return found.value if found else ""


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
  return [(name.decode("latin-1"), value.decode("latin-1").strip()) for name, value in headers]


async def _answer(send: Send, status: int, sentence: str) -> None:
  body = json.dumps(dict(detail=sentence)).encode()
  headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})
