"""The commands against object stores on this machine, also behind a proxy that fails.

Needs s3fs and moto[server], or gcsfs and gcp-storage-emulator; skipped without them.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import bucket_servers
import pytest
import tiny_run

from pgjax.formats import buckets

SETTINGS = {"total_steps": 12, "ckpt_steps": 6, "evals.val.log_steps": 12}
needs_s3 = pytest.mark.skipif(not bucket_servers.HAS_S3, reason="needs s3fs and moto[server]")
needs_gcs = pytest.mark.skipif(not bucket_servers.HAS_GCS, reason="needs gcp-storage-emulator")


def run(arguments, cache, server):
  """(status, output) of a command with a cache of its own, as on another machine."""
  compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache.parent / "compiled")
  env = os.environ | tiny_run.environment(1) | server | dict(PGJAX_CACHE_DIR=str(cache))
  env["JAX_COMPILATION_CACHE_DIR"] = compiled
  command = [sys.executable, *arguments]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  done = subprocess.run(command, cwd=tiny_run.ROOT, env=env, timeout=900, check=False, **pipes)
  assert "Traceback" not in done.stdout, done.stdout
  return done.returncode, done.stdout


def start(arguments, cache, server, log):
  """A run that uploads every half second, and waits before it logs a step for the log-th time.

  Its output is in a file of `cache`; it waits until the file "pause" there is gone.
  """
  cache.mkdir()
  env = os.environ | tiny_run.environment(1) | server
  env |= dict(PGJAX_CACHE_DIR=str(cache), PAUSE=f"log {log}", PAUSE_FILE=str(cache / "pause"))
  command = [sys.executable, "tests/faults/paced.py", *arguments[1:]]
  with (cache / "out.txt").open("w") as output:
    return subprocess.Popen(command, cwd=tiny_run.ROOT, env=env, stdout=output, stderr=output)


def wait_until(process, ready, seconds=400):
  deadline = time.monotonic() + seconds
  while not ready():
    assert time.monotonic() < deadline
    assert process.poll() is None, process.returncode
    time.sleep(0.1)


def sums(bucket, step):
  return json.loads(bucket.read(f"checkpoints/{step}/run.json"))["sums"]


@pytest.fixture
def server(monkeypatch):
  """The environment of an S3 server with a bucket, also of this process."""
  with bucket_servers.s3() as url:
    env = bucket_servers.KEYS | dict(AWS_ENDPOINT_URL=url)
    for name, value in env.items():
      monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield env


def losses(bucket):
  rows = [json.loads(line) for line in bucket.read("metrics.jsonl").splitlines()]
  return {row["step"]: row["training_loss"] for row in rows if "training_loss" in row}


def train_lose_a_step_resume_elsewhere_and_score(url, server, tmp_path, proxy=None):
  """A step that is lost is trained again on another machine, to the same losses."""
  train = tiny_run.train_arguments(url, **SETTINGS)
  status, out = run(train, tmp_path / "first", server)
  assert status == 0, out
  if proxy:
    assert proxy.failed
    proxy.share = 0.0
  bucket = buckets.Bucket(url, "--workdir")
  before = losses(bucket)
  assert list(before) == list(range(1, 13))
  bucket.delete([name for name in bucket.listing() if name.startswith("checkpoints/12/")])
  if proxy:
    proxy.share = 0.2
  status, out = run(train, tmp_path / "second", server)
  assert status == 0, out
  assert "Resuming from step 6." in out
  if proxy:
    proxy.share = 0.0
  assert losses(bucket) == before
  scores = f"{url}-scores"
  score = ["-m", "pgjax.evaluate", f"--ckpt={url}", f"--out={scores}", "--evals=test", "--watch"]
  status, out = run(score, tmp_path / "third", server)
  assert status == 0, out
  listed = buckets.Bucket(scores, "--out").listing()
  for step in (6, 12):
    assert {f"step_{step}/metrics.json", f"step_{step}/report.html"} <= listed.keys()


@pytest.mark.long
@needs_s3
@pytest.mark.parametrize("fault", ["500", "reset", "slow"])
def test_s3_with_a_server_that_fails(fault, tmp_path, monkeypatch):
  with bucket_servers.s3() as url:
    proxy = bucket_servers.FaultyProxy(url)
    server = bucket_servers.KEYS | dict(AWS_ENDPOINT_URL=proxy.url)
    for name, value in server.items():
      monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    proxy.fault, proxy.share = fault, 0.2
    train_lose_a_step_resume_elsewhere_and_score("s3://bucket/runs/1", server, tmp_path, proxy)


@pytest.mark.long
@needs_gcs
def test_gcs(tmp_path, monkeypatch):
  with bucket_servers.gcs() as url:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    gcsfs.GCSFileSystem(token="anon", project="p").mkdir("bucket")
    server = dict(STORAGE_EMULATOR_HOST=url)
    train_lose_a_step_resume_elsewhere_and_score("gs://bucket/runs/1", server, tmp_path)


@pytest.mark.slow
@needs_s3
def test_a_bucket_that_cannot_be_used_ends_a_run_with_one_sentence(tmp_path):
  server = bucket_servers.KEYS | dict(AWS_ENDPOINT_URL="http://127.0.0.1:9")
  status, out = run(tiny_run.train_arguments("s3://bucket/run", **SETTINGS), tmp_path / "c", server)
  assert status == 1
  assert "--workdir=s3://bucket/run cannot be used" in out


@pytest.mark.long
@needs_s3
def test_a_killed_and_a_stopped_run_go_on_elsewhere_to_the_same_numbers(server, tmp_path):
  """kill -9 and SIGTERM; and while it runs, nobody else may use the workdir."""
  straight = buckets.Bucket("s3://bucket/runs/straight", "--workdir")
  status, out = run(tiny_run.train_arguments(straight.url, **SETTINGS), tmp_path / "0", server)
  assert status == 0, out
  bucket = buckets.Bucket("s3://bucket/runs/1", "--workdir")
  train = tiny_run.train_arguments(bucket.url, **SETTINGS)
  first = start(train, tmp_path / "first", server, 8)
  wait_until(first, lambda: bucket.read("checkpoints/6/files.json"))
  status, out = run(train, tmp_path / "refused", server)
  first.kill()
  first.wait()
  assert status == 1
  holder = rf"s3://bucket/runs/1 is in use by another run on host {socket.gethostname()}, process"
  assert re.search(rf"{holder} {first.pid}, which started at \d{{4}}-\d\d-\d\d \d\d:", out), out
  second = start(train, tmp_path / "second", server, 3)
  wait_until(second, (tmp_path / "second/pause").exists)
  second.send_signal(signal.SIGTERM)
  (tmp_path / "second/pause").unlink()
  status, printed = second.wait(120), (tmp_path / "second/out.txt").read_text()
  assert status == 75, printed
  assert "Resuming from step 6." in printed
  assert re.search(r"Uploading the last \d+ files, .* MB, to s3://bucket/runs/1", printed)
  [step] = re.findall(r"Stopped by SIGTERM after step (\d+) of 12, and saved", printed)
  assert "Traceback" not in printed
  assert bucket.read(f"checkpoints/{step}/files.json")
  assert list(losses(bucket)) == list(range(1, int(step) + 1))
  status, out = run(train, tmp_path / "third", server)
  assert status == 0, out
  assert f"Resuming from step {step}." in out
  assert losses(bucket) == losses(straight)
  assert sums(bucket, 12) == sums(straight, 12)


@pytest.mark.long
@needs_s3
def test_two_processes_of_one_run_use_one_bucket(server, tmp_path):
  bucket = buckets.Bucket("s3://bucket/runs/2", "--workdir")
  launch = ["launch/local.py", "--processes=2", "--devices=1", "--"]
  train = [*launch, *tiny_run.train_arguments(bucket.url, **SETTINGS)]
  status, out = run(train, tmp_path / "first", server)
  assert status == 0, out
  before = losses(bucket)
  assert list(before) == list(range(1, 13))
  bucket.delete([name for name in bucket.listing() if name.startswith("checkpoints/12/")])
  status, out = run(train, tmp_path / "second", server)
  assert status == 0, out
  assert "Resuming from step 6." in out
  assert losses(bucket) == before
