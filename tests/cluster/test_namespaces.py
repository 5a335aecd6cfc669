"""Two hosts with addresses of their own: two network namespaces, joined by a cable.

Run by `make test-cluster`, which needs root and Debian's package iproute2.
"""

import os
import re
import shutil
import signal
import subprocess
import sys

import namespaces
import pytest
from namespaces import ADDRESSES
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


def why_not():
  if not shutil.which("ip"):
    return "needs Debian's iproute2"
  if os.getuid():
    return "needs root"
  name = f"pgjax-probe-{os.getpid()}"
  made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
  subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
  return f"no namespace can be made here: {made.stderr}" if made.returncode else ""


pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def hosts():
  if reason := why_not():
    pytest.skip(reason)
  with namespaces.hosts() as names:
    yield names


def pgjax_variables(index):
  return dict(
    PGJAX_COORDINATOR=f"{ADDRESSES[0]}:29877", PGJAX_NUM_PROCESSES="2", PGJAX_PROCESS_ID=str(index)
  )


def slurm_variables(index):
  """As of srun, with addresses for the names of nodes."""
  names = dict(SLURM_JOB_ID="77", SLURM_STEP_NODELIST=",".join(ADDRESSES), SLURM_NTASKS="2")
  return names | dict(SLURM_PROCID=str(index), SLURM_LOCALID="0", SLURM_NODEID=str(index))


def start(hosts, arguments, variables):
  processes = []
  for index, host in enumerate(hosts):
    environ = os.environ | environment(devices=4) | variables(index)
    command = [*namespaces.inside(host), sys.executable, *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, **pipes))
  return processes


def finish(processes, code):
  outputs = [process.communicate(timeout=600)[0] for process in processes]
  assert [process.returncode for process in processes] == [code, code], outputs
  return outputs[0]


def test_two_hosts_train_stop_resume_and_evaluate(hosts, whole, tmp_path):
  workdir = tmp_path / "run"
  began = start(hosts, train_arguments(workdir), pgjax_variables)
  wait_for_rows(workdir, 3, seconds=600)
  began[1].send_signal(signal.SIGTERM)  # The other one learns of it.
  out = finish(began, 75)
  assert (
    f"Process 0 of 2, started by the PGJAX_* variables, coordinator {ADDRESSES[0]}:29877" in out
  )
  [step] = re.findall(rf"Stopped by a signal to another process after step (\d+) of {STEPS}", out)
  out = finish(start(hosts, train_arguments(workdir), slurm_variables), 0)
  assert "Process 0 of 2, started by Slurm (job 77, nodes 10.77.13.1,10.77.13.2)." in out
  assert f"Resuming from step {step}." in out
  assert losses(workdir) == losses(whole)
  assert state_sums(workdir) == state_sums(whole)
  for name, variables in (("pgjax", pgjax_variables), ("slurm", slurm_variables)):
    flags = [f"--ckpt={workdir}", f"--out={tmp_path}/{name}", "--evals=val"]
    finish(start(hosts, ["-m", "pgjax.evaluate", *flags], variables), 0)
    assert answers(tmp_path / name) == answers(whole / "evals/val")


def test_hosts_that_are_cut_off_end_with_a_sentence_and_resume_exactly(hosts, whole, tmp_path):
  """Neither hears of the other one any more: no connection breaks."""
  workdir = tmp_path / "run"
  began = start(hosts, [*train_arguments(workdir), "--peer_timeout=6"], pgjax_variables)
  wait_for_rows(workdir, 3, seconds=600)
  namespaces.cable(hosts[0], "down")
  try:
    outputs = [process.communicate(timeout=60)[0] for process in began]
  finally:
    namespaces.cable(hosts[0], "up")
  assert [process.returncode for process in began] == [76, 76], outputs
  for index, out in enumerate(outputs):
    [sentence] = [line for line in out.splitlines() if line.startswith("error:")]
    assert f"Process {1 - index} of 2 on host " in sentence
    assert " has been silent for " in sentence
    assert "Traceback" not in out
  finish(start(hosts, train_arguments(workdir), pgjax_variables), 0)
  assert losses(workdir) == losses(whole)
  assert state_sums(workdir) == state_sums(whole)
