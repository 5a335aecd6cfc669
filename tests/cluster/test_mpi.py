"""launch/mpi.sh under a real mpirun: stopped, started again, evaluated; equal to launch/local.py.

Run by `make test-cluster`, which needs Debian's package openmpi-bin.
"""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_run import (
  ROOT,
  STEPS,
  answers,
  environment,
  losses,
  state_sums,
  train_arguments,
  wait_for_rows,
)

pytestmark = [
  pytest.mark.cluster,
  pytest.mark.skipif(not shutil.which("mpirun"), reason="needs Debian's openmpi-bin"),
]
AS_ROOT = dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
MPIRUN = ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "launch/mpi.sh"]
SCRIPT = ["launch/mpi.sh", "-n", "2", "--oversubscribe", "--"]


def start(command, arguments):
  environ = os.environ | environment(devices=4) | AS_ROOT | dict(PYTHON=sys.executable)
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environ, **pipes)


def test_a_stopped_run_resumes_as_if_it_had_not_been(whole, tmp_path):
  workdir = tmp_path / "run"
  began = start(SCRIPT, train_arguments(workdir))
  wait_for_rows(workdir, 3, seconds=600)
  began.send_signal(signal.SIGTERM)
  out, _ = began.communicate(timeout=300)
  assert began.returncode == 75, out
  [step] = re.findall(rf"Stopped by SIGUSR1 after step (\d+) of {STEPS}, and saved", out)
  assert "Process 0 of 2, started by Open MPI." in out
  resumed = start(MPIRUN, train_arguments(workdir))
  out, _ = resumed.communicate(timeout=600)
  assert resumed.returncode == 0, out
  assert f"Resuming from step {step}." in out
  assert losses(workdir) == losses(whole)
  assert state_sums(workdir) == state_sums(whole)
  flags = [f"--ckpt={workdir}", f"--out={tmp_path}/scores", "--evals=val"]
  evaluated = start(MPIRUN, ["-m", "pgjax.evaluate", *flags])
  out, _ = evaluated.communicate(timeout=600)
  assert evaluated.returncode == 0, out
  assert answers(tmp_path / "scores") == answers(whole / "evals/val")


def test_exit_codes_come_back():
  for command in (SCRIPT, MPIRUN):
    for code in (0, 3):
      ended = start(command, ["-c", f"import sys; sys.exit({code})"])
      out, _ = ended.communicate(timeout=60)
      assert ended.returncode == code, out
