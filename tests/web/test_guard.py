"""What the demo's guard lets through; the application behind it would answer everything."""

import asyncio
import json
import os
import socket

import pytest

from pgjax.errors import UserError
from pgjax.web import guard

HOST, PORT = "127.0.0.1", 7860
ADDRESS = f"http://{HOST}:{PORT}"


class Behind:
  """An application that answers everything, with permissions for other sites."""

  def __init__(self):
    self.asked, self.reply = [], b"ok"

  async def __call__(self, scope, receive, send):
    self.asked.append(scope["path"])
    headers = [(b"Access-Control-Allow-Origin", b"*"), (b"access-control-allow-headers", b"*")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": self.reply[:2], "more_body": True})
    await send({"type": "http.response.body", "body": self.reply[2:]})


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "uploads").mkdir()
  return tmp_path / "uploads"


@pytest.fixture
def guarded(folder):
  behind = Behind()
  return guard.Guard(behind, guard.Uploads(folder, 100), HOST, PORT), behind


def request(app, path, method="GET", host=f"{HOST}:{PORT}", length="0", **headers):
  """(status, headers, body) of a request; a header `x_y` is written x-y."""
  sent = []
  given = [("host", host)] if isinstance(host, str) else [("host", h) for h in host or ()]
  given += [("content-length", length)] if method == "POST" and length is not None else []
  given += [(name.replace("_", "-"), value) for name, value in headers.items()]
  scope = dict(
    type="http", path=path, method=method, headers=[(n.encode(), v.encode()) for n, v in given]
  )

  async def send(message):
    sent.append(message)

  asyncio.run(app(scope, None, send))
  body = b"".join(m.get("body", b"") for m in sent)
  return sent[0]["status"], {n.decode(): v.decode() for n, v in sent[0]["headers"]}, body


ROUTES = [
  ("GET", "/"), ("GET", "/config"), ("GET", "/assets/index.js"), ("GET", "/gradio_api/info"),
  ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join"),
  ("GET", "/gradio_api/queue/data"),   ("GET", "/gradio_api/heartbeat/abc"), ("GET", "/theme.css"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_page_s_own_requests_pass(guarded, method, path):
  for host in (f"{HOST}:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", "localhost"):
    own = dict(origin=f"http://{host}", sec_fetch_site="same-origin", referer=f"http://{host}/x")
    for headers in ({}, own):
      assert request(guarded[0], path, method, host, **headers)[0] == 200


HOSTS = [
  "evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example",
  "127.0.0.1:80", "localhost:1", "127.0.0.1:7860@evil.example", "0.0.0.0:7860", "127.1:7860",
  "[::1]:7860", "", None, ["localhost", "evil.example"], "localhost:7860:1", "2130706433:7860",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_forged_host_reaches_nothing_and_gets_no_permission(guarded, host, method, path):
  status, headers, body = request(guarded[0], path, method, host, origin=f"http://{host}")
  assert status == 400
  assert ADDRESS in json.loads(body)["detail"]
  assert not [name for name in headers if name.lower().startswith("access-control")]
  assert guarded[1].asked == []


ORIGINS = [
  dict(origin="http://evil.example"), dict(origin="null"), dict(origin=f"https://{HOST}:{PORT}"),
  dict(origin="http://localhost:9999"), dict(origin=f"http://{HOST}:{PORT}.evil.example"),
  dict(origin=""), dict(sec_fetch_site="cross-site"), dict(sec_fetch_site="same-site"),
  dict(referer="http://evil.example/page"), dict(referer=f"http://{HOST}:{PORT}@evil.example/"),
]  # fmt: skip


@pytest.mark.parametrize("headers", ORIGINS, ids=str)
@pytest.mark.parametrize(("method", "path"), ROUTES[3:])
def test_another_site_s_requests_are_refused(guarded, headers, method, path):
  assert request(guarded[0], path, method, **headers)[0] == 403
  assert guarded[1].asked == []


def test_a_link_from_another_site_opens_the_page_but_no_script_of_it_does(guarded):
  link = dict(sec_fetch_site="cross-site", referer="http://evil.example/")
  assert request(guarded[0], "/", **link)[0] == 200
  assert request(guarded[0], "/", origin="http://evil.example")[0] == 403
  assert request(guarded[0], "/", "POST", **link)[0] == 403


def test_no_answer_permits_other_sites(guarded):
  _, headers, _ = request(guarded[0], "/")
  assert not [name for name in headers if name.lower().startswith("access-control")]
  assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "TRACE", "get"])
def test_other_methods_are_refused(guarded, method):
  assert request(guarded[0], "/", method)[0] == 405


@pytest.mark.parametrize(
  "path",
  [
    "/gradio_api/proxy=http://evil.example", "/gradio_api/component_server", "/gradio_api/call/ask",
    "/gradio_api/run/predict", "/gradio_api/api/predict", "/api/ask", "/run/predict", "/call/ask",
    "/gradio_api/stream/1/2/3", "/login", "/gradio_api/dev/reload", "/monitoring/x", "/docs",
    "/gradio_api/mcp/", "/custom_component/1/2/3", "/assets/../../etc/passwd", "/static/..\\x",
    "//",     "/queue/join", "/upload/x", "/gradio_api/vibe-code/", "",
  ],
)  # fmt: skip
def test_routes_that_the_page_does_not_use_are_closed(guarded, path):
  for method in ("GET", "POST"):
    assert request(guarded[0], path, method)[0] in (403, 404)
  assert guarded[1].asked == []


def test_a_request_has_a_bounded_length(guarded):
  post = lambda path, length: request(guarded[0], path, "POST", length=length)[0]  # noqa: E731
  assert post("/gradio_api/queue/join", str(guard.MOST_REQUEST_BYTES)) == 200
  assert post("/gradio_api/queue/join", str(guard.MOST_REQUEST_BYTES + 1)) == 413
  assert post("/gradio_api/upload", str(10**9)) == 413
  assert post("/gradio_api/upload", None) == 411
  assert post("/gradio_api/upload", "-1") == 411


def uploaded(guarded, path, cookie=None):
  """As if the application had stored an upload there."""
  app, behind = guarded
  behind.reply = json.dumps([str(path)]).encode()
  headers = dict(cookie=cookie) if cookie else {}
  assert request(app, "/gradio_api/upload", "POST", **headers)[0] == 200
  behind.reply = b"ok"


def test_an_upload_is_read_by_its_owner_only(guarded, folder):
  app, _ = guarded
  _, headers, _ = request(app, "/")
  mine = headers["set-cookie"].split(";")[0]
  assert "HttpOnly" in headers["set-cookie"]
  assert "SameSite=Strict" in headers["set-cookie"]
  assert "set-cookie" not in request(app, "/", cookie=mine)[1]
  path = folder / "a.png"
  path.write_bytes(b"mine")
  uploaded(guarded, path, mine)
  uploads, owner = app._uploads, guard.owner_of(dict(cookie=mine))  # noqa: SLF001
  assert uploads.read(str(path), owner) == b"mine"
  for other in ("", "x", None):
    with pytest.raises(UserError, match="no upload of yours"):
      uploads.read(str(path), other)
  assert request(app, f"/gradio_api/file={path}", cookie=mine)[0] == 200
  assert request(app, f"/gradio_api/file={path}")[0] == 403
  assert request(app, f"/gradio_api/file={path}", cookie="pgjax_demo=x")[0] == 403


def places(folder, tmp_path):
  """Thirteen spellings of files that are no upload."""
  private = tmp_path / "private.png"
  private.write_bytes(b"secret")
  (folder / "link.png").symlink_to(private)
  (folder / "linked").symlink_to(tmp_path)
  os.mkfifo(folder / "pipe.png")
  (folder / "other.png").write_bytes(b"of nobody")
  return [
    str(private), os.path.relpath(private), f"file://{private}", str(folder / "link.png"),
    "http://127.0.0.1:1/private.png", "/proc/self/environ", f"{folder}/../private.png",
    str(private).replace("/", "%2f"), f"{folder}/linked/private.png", str(folder / "pipe.png"),
    f"//{str(private)[1:]}", f"{folder}/x\0/../../private.png", str(folder),
  ]  # fmt: skip


def test_what_was_not_uploaded_is_neither_read_nor_shown(guarded, folder, tmp_path):
  app, behind = guarded
  for path in places(folder, tmp_path):
    with pytest.raises(UserError, match="no upload of yours"):
      app._uploads.read(path, "")  # noqa: SLF001
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/"):
      assert request(app, route + path)[0] == 403, path
  for odd in (None, 3, ["x"], {"path": "x"}, b"x"):
    with pytest.raises(UserError, match="no upload of yours"):
      app._uploads.read(odd, "")  # noqa: SLF001
  assert behind.asked == []


def test_an_upload_that_was_replaced_is_not_read(guarded, folder, tmp_path):
  private = tmp_path / "private.png"
  private.write_bytes(b"secret")
  for name, replace in (
    ("link", lambda path: path.symlink_to(private)),
    ("pipe", os.mkfifo),
    ("socket", lambda path: socket.socket(socket.AF_UNIX).bind(str(path))),
    ("folder", lambda path: path.mkdir()),
    ("gone", lambda path: None),
  ):
    path = folder / name
    uploaded(guarded, path)
    replace(path)
    with pytest.raises(UserError, match="no file any more"):
      guarded[0]._uploads.read(str(path), "")  # noqa: SLF001
    assert request(guarded[0], f"/gradio_api/file={path}")[0] == 403


def test_a_large_upload_is_refused(guarded, folder):
  (folder / "a").write_bytes(bytes(101))
  uploaded(guarded, folder / "a")
  with pytest.raises(UserError, match="over 100 bytes"):
    guarded[0]._uploads.read(str(folder / "a"), "")  # noqa: SLF001


def test_what_is_no_list_of_paths_is_no_upload(guarded, folder):
  app, behind = guarded
  (folder / "a").write_bytes(b"x")
  for reply in (b"not json", b"3", json.dumps(str(folder / "a")).encode(), b"[3, null]"):
    behind.reply = reply
    request(app, "/gradio_api/upload", "POST")
  with pytest.raises(UserError, match="no upload"):
    app._uploads.read(str(folder / "a"), "")  # noqa: SLF001


def test_web_sockets_are_closed(guarded):
  sent = []

  async def send(message):
    sent.append(message)

  asyncio.run(guarded[0](dict(type="websocket", path="/", headers=[]), None, send))
  assert sent[0]["type"] == "websocket.close"
  assert guarded[1].asked == []
