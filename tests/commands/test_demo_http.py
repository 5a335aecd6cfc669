"""The demo over HTTP, with Gradio and a model that only counts bytes: what a request may read."""

import http.client
import importlib.util
import io
import json
import os
import types
import urllib.parse

import pytest
from PIL import Image

from pgjax import demo
from pgjax.inference import decoder_cache, example_prompts

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("gradio") is None, reason="Gradio (requirements-demo.txt) is missing"
)
SECRET = b"\x89PNG a picture of nobody else's business"


class Page:
  """The served page; `read` are the pictures that the model was asked about."""

  def __init__(self, port, read):
    self.port, self.read = port, read

  def send(self, method, path, body=None, **headers):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    reply = connection.getresponse()
    got = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return got

  def upload(self, content, name="a.png", **headers):
    """The path that the page stored it under."""
    boundary = "x" * 20
    disposition = f'form-data; name="files"; filename="{name}"'
    head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: image/png\r\n\r\n"
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    return self.send("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)

  def function(self):
    """The number of the function of the button."""
    config = json.loads(self.send("GET", "/config")[2])
    return next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 5)

  def ask(self, image, *, route="/gradio_api/queue/join", settings=("greedy", 8, ""), **headers):
    """The event stream's last message, or the refusal."""
    data, session = [image, "what?", *settings], "s" + os.urandom(8).hex()
    body = dict(data=data, fn_index=self.function(), session_hash=session, trigger_id=1)
    headers = dict(Content_Type="application/json") | headers
    status, _, reply = self.send("POST", route, json.dumps(body), **headers)
    if status != 200 or "queue/join" not in route:
      return status, reply
    stream = f"/gradio_api/queue/data?session_hash={session}"
    status, _, reply = self.send("GET", stream, **headers)
    lines = [json.loads(line[6:]) for line in reply.splitlines() if line.startswith(b"data: ")]
    done = [line for line in lines if line["msg"] == "process_completed"]
    return status, json.dumps(done).encode()


@pytest.fixture(scope="module")
def page():
  read = []
  source = types.SimpleNamespace(name="fake", run=None)
  settings = decoder_cache.Settings("greedy", 8)
  opened = types.SimpleNamespace(settings=settings, source=source)

  def asked(answerer, encoded, prompt, settings):
    read.append(encoded)
    return f"{len(encoded)} bytes", None, "<p>tokens</p>"

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(demo, "asked", asked)
    patch.setattr(example_prompts, "of", lambda opened: ["what is it?"])
    answerer = types.SimpleNamespace(opened=opened)
    with demo.serving(demo.imported(), answerer, 0) as port:
      yield Page(port, read)


@pytest.fixture
def private(tmp_path):
  (tmp_path / "private.png").write_bytes(SECRET)
  return tmp_path / "private.png"


def meta(path, **more):
  return dict(path=path, meta=dict(_type="gradio.FileData"), **more)


PATHS = {
  "absolute": lambda p: dict(path=str(p)),
  "with meta": lambda p: meta(str(p)),
  "null meta": lambda p: dict(path=str(p), meta=None),
  "empty meta": lambda p: dict(path=str(p), meta={}),
  "another type": lambda p: dict(path=str(p), meta=dict(_type="gradio.Other")),
  "relative": lambda p: dict(path=os.path.relpath(p)),
  "file url": lambda p: dict(path=f"file://{p}", url=f"file://{p}"),
  "url": lambda p: dict(path=f"http://127.0.0.1/{p}", url=f"http://127.0.0.1/{p}"),
  "environ": lambda p: dict(path="/proc/self/environ"),
  "encoded": lambda p: dict(path=urllib.parse.quote(str(p), safe="")),
  "above the uploads": lambda p: dict(
    path=os.path.join(demo.upload_folder(), os.path.relpath(p, demo.upload_folder()))
  ),
  "a link in the uploads": lambda p: dict(path=_link(p)),
  "text": str,
}
ROUTES = (
  "/gradio_api/queue/join", "/queue/join", "/gradio_api/call/ask", "/call/ask",
  "/gradio_api/run/ask", "/gradio_api/api/ask", "/run/predict", "/api/predict",
  "/gradio_api/component_server",
)  # fmt: skip
FILE_ROUTES = (
  "/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/", "/gradio_api/proxy=", "/static/",
  "/assets/", "/gradio_api/stream/", "/gradio_api/deep_link?path=",
)  # fmt: skip


def _link(path):
  link = os.path.join(demo.upload_folder(), f"link-{os.urandom(4).hex()}.png")
  os.symlink(path, link)
  return link


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("spelling", PATHS)
def test_a_request_that_names_a_file_reads_nothing(page, private, spelling, route):
  del page.read[:]
  image = PATHS[spelling](private)
  _, reply = page.ask(image, route=route)
  assert page.read == []
  assert b"bytes" not in reply
  assert SECRET not in reply


@pytest.mark.parametrize("route", FILE_ROUTES)
@pytest.mark.parametrize("spelling", PATHS)
def test_no_route_shows_a_file_of_the_disk(page, private, spelling, route):
  image = PATHS[spelling](private)
  path = image if isinstance(image, str) else image["path"]
  for written in (path, urllib.parse.quote(path), urllib.parse.quote(path, safe="")):
    status, _, reply = page.send("GET", route + written)
    assert status >= 400
    assert SECRET not in reply
    assert b"PATH=" not in reply


def picture():
  file = io.BytesIO()
  Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
  return file.getvalue()


def test_an_upload_is_answered_about(page):
  del page.read[:]
  content = picture()
  status, headers, reply = page.upload(content)
  assert status == 200
  assert not [name for name in headers if name.lower().startswith("access-control")]
  [path] = json.loads(reply)
  status, reply = page.ask(meta(path))
  assert page.read == [content]
  assert f"{len(content)} bytes".encode() in reply
  assert page.send("GET", f"/gradio_api/file={path}")[2] == content


def test_an_upload_of_one_browser_is_not_for_another(page):
  del page.read[:]
  cookies = [page.send("GET", "/")[1]["set-cookie"].split(";")[0] for _ in range(2)]
  [path] = json.loads(page.upload(picture(), Cookie=cookies[0])[2])
  assert b"no upload of yours" in page.ask(meta(path), Cookie=cookies[1])[1]
  assert page.send("GET", f"/gradio_api/file={path}", Cookie=cookies[1])[0] == 403
  assert page.read == []
  page.ask(meta(path), Cookie=cookies[0])
  assert len(page.read) == 1


@pytest.mark.parametrize(
  "settings",
  [
    ("best_of(1000000, nucleus(0.9))", 8, ""),
    ("beam(100)", 8, ""),
    ("greedy", 10**9, ""),
    ("greedy", 8, 'json(schema="/etc/hostname")'),
    ("greedy", 8, 'json(schema="/dev/stdin")'),
  ],
)
def test_a_request_beyond_the_bounds_is_refused(page, settings):
  del page.read[:]
  [path] = json.loads(page.upload(picture())[2])
  _, reply = page.ask(meta(path), settings=settings)
  assert page.read == []
  assert b"Not answered" in reply or b"not in the list of choices" in reply


@pytest.mark.parametrize(
  "headers",
  [
    dict(Origin="http://evil.example"),
    dict(Origin="null"),
    dict(Sec_Fetch_Site="cross-site"),
    dict(Host="evil.example"),
    dict(Host="evil.example", Origin="http://evil.example"),
    dict(Host="127.0.0.1.evil.example"),
  ],
  ids=str,
)
def test_another_site_uploads_and_asks_nothing(page, headers):
  folder = demo.upload_folder()
  before = sorted(os.listdir(folder))
  for got in (
    page.upload(picture() + os.urandom(4), **headers),
    page.send("GET", "/config", **headers),
  ):
    status, returned, _ = got
    assert status in (400, 403)
    assert not [name for name in returned if name.lower().startswith("access-control")]
  status, returned, _ = page.send("OPTIONS", "/gradio_api/upload", **headers)
  assert status >= 400
  assert not [name for name in returned if name.lower().startswith("access-control")]
  assert sorted(os.listdir(folder)) == before
