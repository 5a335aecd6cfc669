"""launch/slurm.sbatch under a real Slurm: stopped, queued again and resumed, bit for bit.

Run by `make test-cluster`, which needs root and Debian's packages slurm-wlm and munge.
"""

import re
import sys
import time

import pytest
import slurm_services
from tiny_run import ROOT, STEPS, environment, losses, state_sums, train_arguments, wait_for_rows

pytestmark = [
  pytest.mark.cluster,
  pytest.mark.skipif(bool(slurm_services.why_not()), reason=slurm_services.why_not()),
]
SBATCH = str(ROOT / "launch/slurm.sbatch")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  with slurm_services.Slurm(tmp_path_factory.mktemp("slurm")) as services:
    yield services


def submit(slurm, log, *arguments, options=("--nodes=1", "--ntasks=2"), **environ):
  environ = environment(devices=4) | dict(PYTHON=sys.executable) | environ
  return slurm.submit(
    *options, f"--output={log}", f"--chdir={ROOT}", SBATCH, *arguments, environ=environ
  )


def test_a_job_that_was_stopped_resumes_as_if_it_had_not_been(slurm, whole, tmp_path):
  log, workdir = tmp_path / "log", tmp_path / "run"
  job = submit(slurm, log, *train_arguments(workdir))
  wait_for_rows(workdir, 3, seconds=600)
  slurm.run("scancel", "--signal=TERM", job)
  ended = slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
  text = log.read_text()
  assert ended["JobState"] == "COMPLETED", text
  assert ended["Restarts"] == "1"
  assert re.search(rf"0: Process 0 of 2, started by Slurm \(job {job}, nodes \S+\)", text)
  [step] = re.findall(rf"0: Stopped by SIGTERM after step (\d+) of {STEPS}, and saved", text)
  assert f"0: Resuming from step {step}." in text
  assert "Traceback" not in text
  assert losses(workdir) == losses(whole)
  assert state_sums(workdir) == state_sums(whole)


PROGRAM = """
import os, signal, sys, time
print("task", os.environ["SLURM_PROCID"], *sys.argv[2:], flush=True)
if sys.argv[1] == "wait":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  time.sleep(600)
sys.exit(int(sys.argv[1]))
"""


def run_program(slurm, tmp_path, *arguments, options=("--nodes=1", "--ntasks=2")):
  """A job whose tasks print their arguments and end with the status in the first of them."""
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  return submit(slurm, tmp_path / "log-%j", str(program), *arguments, options=options)


def log_of(tmp_path, job):
  path = tmp_path / f"log-{job}"
  return path.read_text() if path.exists() else ""


def test_an_error_and_a_cancelled_job_are_not_queued_again(slurm, tmp_path):
  failed = slurm.wait_for(run_program(slurm, tmp_path, "1"), "FAILED", "COMPLETED")
  assert (failed["JobState"], failed["Restarts"], failed["ExitCode"]) == ("FAILED", "0", "1:0")
  job = run_program(slurm, tmp_path, "wait")
  slurm.wait_for(job, "RUNNING")
  slurm.wait(lambda: "task 1" in log_of(tmp_path, job), 60, "its tasks")
  slurm.run("scancel", job)
  time.sleep(5)  # The script would have queued it again.
  cancelled = slurm.wait_for(job, "CANCELLED", "COMPLETED", "PENDING")
  assert (cancelled["JobState"], cancelled["Restarts"]) == ("CANCELLED", "0")


def test_each_element_of_a_sweep_has_flags_and_a_workdir_of_its_own(slurm, tmp_path):
  options = ("--nodes=1", "--ntasks=1", "--array=0-2")
  job = run_program(slurm, tmp_path, "0", "--workdir=w", options=options)
  logs = []
  for i in range(3):
    slurm.wait_for(f"{job}_{i}", "COMPLETED")
    number = slurm.job(f"{job}_{i}")["JobId"]
    logs.append(log_of(tmp_path, number))
  for i, log in enumerate(logs):
    rate = ("1e-6", "3e-6", "1e-5")[i]
    assert f"task 0 --workdir=w/{i} --config.lr={rate}" in log
  apart = run_program(slurm, tmp_path, "0", "--workdir", "w", options=(*options[:2], "--array=1"))
  number = slurm.wait_for(f"{apart}_1", "COMPLETED")["JobId"]
  assert "task 0 --workdir w/1 --config.lr=3e-6" in log_of(tmp_path, number)
  beyond = run_program(slurm, tmp_path, "0", options=("--nodes=1", "--array=7"))
  assert slurm.wait_for(f"{beyond}_7", "FAILED", "COMPLETED")["JobState"] == "FAILED"


def test_a_time_limit_stops_the_job_before_and_queues_it_again(slurm, tmp_path):
  """Two minutes before; Slurm signals up to a minute earlier."""
  options = ("--nodes=1", "--ntasks=2", "--time=3")
  job = run_program(slurm, tmp_path, "wait", options=options)
  slurm.wait(lambda: slurm.job(job)["Restarts"] == "1", 150, "its second start")
  slurm.run("scancel", job)
