"""Object stores on this machine: moto's S3, a GCS emulator, and a proxy in front that fails."""

import contextlib
import http.client
import http.server
import importlib.util
import random
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


class FaultyProxy(http.server.ThreadingHTTPServer):
  """Passes requests on; with `fault` = "500", "reset" or "slow" a `share` of them fails so."""

  daemon_threads = True

  def __init__(self, target: str, seed: int = 0):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.target = urllib.parse.urlsplit(target).netloc
    self.fault, self.share, self.failed = "", 0.0, 0
    self.random = random.Random(seed)
    self.url = f"http://127.0.0.1:{self.server_port}"
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def handle_error(self, request, client_address):
    """A client that hangs up is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    """Nothing is printed."""

  def _pass_on(self):
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    proxy = self.server
    fault = proxy.fault if proxy.random.random() < proxy.share else ""
    proxy.failed += bool(fault)
    if fault == "reset":
      linger = struct.pack("ii", 1, 0)
      self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
      self.close_connection = True
      self.connection.close()
      return
    if fault == "slow":
      time.sleep(2.0)
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
      self.wfile.write(data)

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
