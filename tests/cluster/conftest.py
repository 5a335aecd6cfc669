"""The run that every launcher's run must equal."""

import os
import subprocess
import sys

import pytest
from tiny_run import ROOT, environment, train_arguments


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """A run of two processes of four devices that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("run") / "whole"
  command = ["launch/local.py", "--devices=4", "--", *train_arguments(workdir)]
  ended = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | environment(devices=4),
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stdout
  return workdir
