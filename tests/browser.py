"""A headless Chromium for tests, driven over pipes by its DevTools protocol: no package, no port.

It records requests and console errors, so that a test can assert that there are none.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
_FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
  """One page.

  Attributes:
    requests: URLs that pages have requested.
    complaints: console errors and warnings, exceptions, refused and failed requests.
  """

  def __init__(self, width=1280, height=900, *, phone=False, dark=False):
    self.requests, self.complaints = [], []
    self._numbers, self._buffer, self._session = itertools.count(1), b"", None
    self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Children still write.
    (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write} 2>/dev/null'
    self._process = subprocess.Popen(
      ["bash", "-c", command, PROGRAM, *_FLAGS, f"--user-data-dir={self._folder.name}"],
      pass_fds=(to_read, to_write),
    )
    os.close(to_read)
    os.close(to_write)
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
      self.send(f"{domain}.enable")
    self.send(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=height, deviceScaleFactor=1, mobile=phone,
    )  # fmt: skip
    scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
    self.send("Emulation.setEmulatedMedia", features=[scheme])

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.wait()
    os.close(self._read)
    os.close(self._write)
    self._folder.cleanup()

  def open(self, url, seconds=60):
    """Loads the page and waits for it."""
    self._loaded = False
    self.send("Page.navigate", url=url)
    self._until(lambda: self._loaded, seconds)

  def run(self, script):
    """The value of an expression in the page; promises are awaited."""
    reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in reply, reply
    return reply["result"].get("value")

  def wait_for(self, script, seconds=60):
    """Waits until the expression is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := self.run(script)):
      assert time.monotonic() < end, f"{script} was not true within {seconds} s"
      time.sleep(0.1)
    return value

  def choose_files(self, selector, *paths):
    """Sets the files of an input, as its dialog would."""
    root = self.send("DOM.getDocument")["root"]["nodeId"]
    node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

  def press(self, key, code):
    """One key, down and up."""
    for kind in ("keyDown", "keyUp"):
      self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def picture(self, path, whole=True):
    """Writes a PNG."""
    reply = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
    path.write_bytes(base64.b64decode(reply["data"]))

  def outside(self, *inside):
    """Requests to URLs that do not begin with one of `inside`."""
    return [url for url in self.requests if not url.startswith(("data:", "blob:", *inside))]

  def send(self, method, **params):
    """Sends a command of the protocol and returns its result."""
    number = next(self._numbers)
    message = dict(id=number, method=method, params=params)
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    answers = []
    self._until(lambda: answers, 60, lambda m: m.get("id") == number and answers.append(m))
    assert "error" not in answers[0], (method, answers[0])
    return answers[0]["result"]

  def _until(self, done, seconds, see=lambda message: None):
    end = time.monotonic() + seconds
    while not done():
      assert time.monotonic() < end, f"Chromium did not answer within {seconds} s"
      if select.select([self._read], [], [], 0.1)[0]:
        self._buffer += os.read(self._read, 1 << 20)
      *messages, self._buffer = self._buffer.split(b"\0")
      for text in messages:
        message = json.loads(text)
        self._note(message)
        see(message)

  def _note(self, message):
    name, fields = message.get("method"), message.get("params", {})
    if name == "Page.loadEventFired":
      self._loaded = True
    elif name == "Network.requestWillBeSent":
      self.requests.append(fields["request"]["url"])
    elif name == "Runtime.exceptionThrown":
      self.complaints.append(str(fields["exceptionDetails"].get("exception", fields)))
    elif name == "Runtime.consoleAPICalled" and fields["type"] in ("error", "warning", "assert"):
      self.complaints.append(str([a.get("value", a.get("description")) for a in fields["args"]]))
    elif name == "Log.entryAdded" and fields["entry"]["level"] in ("error", "warning"):
      self.complaints.append(f"{fields['entry']['text']} {fields['entry'].get('url', '')}")
