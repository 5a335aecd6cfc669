"""Object stores on this machine: moto's S3, a GCS emulator, and a proxy in front that fails."""

import contextlib
import http.client
import http.server
import importlib.util
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

KEYS = dict(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1")
HAS_S3 = all(importlib.util.find_spec(name) for name in ("moto", "flask", "s3fs"))
HAS_GCS = all(importlib.util.find_spec(name) for name in ("gcp_storage_emulator", "gcsfs"))


LATE_SECONDS = 2.0  # Of an answer with the fault "slow".


def in_memory(folder, monkeypatch):
  """fsspec's memory, empty, behind s3:// URLs until monkeypatch ends; one attempt a call."""
  import fsspec

  from pgjax.formats import buckets

  monkeypatch.setattr(buckets, "PAUSE_SECONDS", 100.0)
  monkeypatch.setitem(buckets.DRIVERS, "s3", "fsspec")
  monkeypatch.setattr(buckets, "_PIECES", ())
  monkeypatch.setenv("PGJAX_CACHE_DIR", str(folder / "cache"))
  memory = fsspec.filesystem("memory")
  memory.store.clear()
  monkeypatch.setattr(buckets.Bucket, "_fs", lambda self: memory)
  return memory


class FaultyProxy(http.server.ThreadingHTTPServer):
  """Passes requests on; of those that match `only` ("PUT /bucket/x"), the first has the `fault`.

  Of the later ones a `share` has it; none has it while that is 0. Faults are
  "500", "reset" before or within the answer, "slow", or "silent" (without an answer). With
  `seconds` the fault ends so long after the first request that had it.
  """

  daemon_threads = True

  def __init__(self, target: str, seed: int = 0):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.target = urllib.parse.urlsplit(target).netloc
    self.fault, self.share, self.failed, self.only = "", 0.0, 0, ""
    self.seconds, self.first_failed = float("inf"), None
    self.random = random.Random(seed)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def fault_of(self, request: str) -> str:
    """Which fault a request has, such as "PUT /bucket/x"."""
    now = time.monotonic()
    ended = self.first_failed is not None and now > self.first_failed + self.seconds
    share = 1.0 if self.share and not self.failed else self.share
    if ended or not re.search(self.only, request) or self.random.random() >= share:
      return ""
    self.first_failed = self.first_failed or now
    self.failed += 1
    return self.fault

  def handle_error(self, request, client_address):
    """A client that hangs up is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    """Nothing is printed."""

  def _pass_on(self):
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    fault = self.server.fault_of(f"{self.command} {urllib.parse.unquote(self.path)}")
    if fault == "reset" and self.server.random.random() < 0.5:
      return self._reset()
    if fault == "silent":
      time.sleep(1e5)
    if fault == "slow":
      time.sleep(LATE_SECONDS)
    status, headers, data = (500, [], b"") if fault == "500" else self._answer(body)
    self.send_response(status)
    for name, value in headers:
      if name.lower() not in (
        "transfer-encoding",
        "connection",
        "content-length",
        "date",
        "server",
      ):
        self.send_header(name, value)
    length = next((v for n, v in headers if n.lower() == "content-length"), str(len(data)))
    self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data[: len(data) // 2] if fault == "reset" else data)
    return self._reset() if fault == "reset" else None

  def _reset(self):
    linger = struct.pack("ii", 1, 0)
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    self.close_connection = True
    self.connection.close()

  def _answer(self, body):
    connection = http.client.HTTPConnection(self.server.target, timeout=60)
    with contextlib.closing(connection):
      connection.request(self.command, self.path, body or None, dict(self.headers))
      response = connection.getresponse()
      return response.status, response.getheaders(), response.read()

  do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on


@contextlib.contextmanager
def s3():
  """The URL of an S3 server."""
  with _server("from moto.server import main; main()", "-H", "127.0.0.1", "-p") as url:
    yield url


@contextlib.contextmanager
def gcs():
  """The URL of a GCS emulator."""
  code = "from gcp_storage_emulator.__main__ import main; main()"
  with _server(code, "start", "--in-memory", "--host=127.0.0.1", "--port") as url:
    yield url


@contextlib.contextmanager
def _server(code, *arguments):
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, "-c", code, *arguments, str(port)]
  quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  process = subprocess.Popen(command, **quiet)
  try:
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
      if time.monotonic() > deadline or process.poll() is not None:
        raise TimeoutError(f"{command} does not listen")
      time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
  finally:
    process.kill()
    process.wait()
