"""The files of launch/ agree with pgjax and with themselves: names, statuses, process counts."""

import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml

from pgjax.distributed import launchers, signals

STOPPED = str(signals.STOPPED)


def loaded(root, name):
  return yaml.safe_load((root / "launch" / name).read_text())


def test_each_file_says_what_to_edit(root):
  names = {path.name for path in (root / "launch").iterdir() if path.is_file()}
  files = {"slurm.sbatch", "mpi.sh", "jobset.yaml", "skypilot.yaml", "Dockerfile"}
  assert names == files | {"local.py", "Dockerfile.dockerignore"}
  for name in files:
    text = (root / "launch" / name).read_text()
    assert "# Edit: " in text, name
    assert len(text.splitlines()) <= 100, name


def test_shell_scripts_parse_and_requeue_on_the_status_of_a_stopped_run(root):
  for name in ("slurm.sbatch", "mpi.sh"):
    subprocess.run(["bash", "-n", root / "launch" / name], check=True)
    assert os.access(root / "launch" / name, os.X_OK)
  sbatch = (root / "launch/slurm.sbatch").read_text()
  assert f"[ $code = {STOPPED} ]" in sbatch
  for option in ("--nodes=2", "--signal=TERM@120", "--requeue", "--open-mode=append"):
    assert f"\n#SBATCH {option}\n" in sbatch


def test_the_pods_of_the_jobset_are_the_processes(root):
  spec = loaded(root, "jobset.yaml")["spec"]
  [workers] = spec["replicatedJobs"]
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  values = {each["name"]: each.get("value") for each in container["env"]}
  fields = {
    each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"]
    for each in container["env"]
    if "valueFrom" in each
  }
  assert job["completionMode"] == "Indexed"  # It sets JOB_COMPLETION_INDEX.
  assert fields["JOBSET_COORDINATOR"] == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
  assert spec["coordinator"]["replicatedJob"] == workers["name"]
  assert spec["network"]["enableDNSHostnames"]
  for index in range(job["parallelism"]):
    environ = dict(JOBSET_COORDINATOR="pgjax-workers-0-0.pgjax", JOB_COMPLETION_INDEX=str(index))
    environ |= {name: value for name, value in values.items() if value}
    launch = launchers.detect(environ, gpus=8)
    assert (launch.count, launch.index) == (job["parallelism"], index)
    assert (launch.launcher, launch.devices) == ("a Kubernetes JobSet", ())
  assert job["completions"] == job["parallelism"]
  # One failed pod ends the Job, and the JobSet starts all of them again.
  assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
  on_exit, on_condition = job["podFailurePolicy"]["rules"]
  assert on_exit["onExitCodes"] == dict(
    containerName=container["name"], operator="In", values=[signals.STOPPED]
  )
  assert on_condition["onPodConditions"] == [dict(type="DisruptionTarget", status="True")]
  [rule] = spec["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  mounts = {mount["name"] for mount in container["volumeMounts"]}
  assert mounts == {volume["name"] for volume in pod["volumes"]}
  user = re.search(r"^USER (\d+)$", (root / "launch/Dockerfile").read_text(), re.MULTILINE)[1]
  assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user) > 0


def test_skypilot_starts_a_stopped_run_again(root):
  task = loaded(root, "skypilot.yaml")
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [signals.STOPPED]
  assert task["resources"]["use_spot"]
  assert all(f"--workdir={mount}" in task["run"] for mount in task["file_mounts"])


def test_the_image_copies_what_is_there(root):
  text = (root / "launch/Dockerfile").read_text()
  sent = (root / "launch/Dockerfile.dockerignore").read_text().splitlines()
  assert re.search(r"^FROM nvidia/cuda:\d+\.\d+\.\d+-", text, re.MULTILINE)
  for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
    for name in line.split():
      assert (root / name).exists()
      assert f"!{name}" in sent
  version = re.search(r"^ARG JAX=(\d+)\.(\d+)\.\d+$", text, re.MULTILINE)
  assert (0, 10) <= (int(version[1]), int(version[2])) < (0, 13)  # requirements.txt


@pytest.mark.cluster
def test_published_schemas_accept_the_files(root):
  """PGJAX_JOBSET_CRD names the project's file jobset.x-k8s.io_jobsets.yaml."""
  jsonschema = pytest.importorskip("jsonschema")
  if not (name := os.environ.get("PGJAX_JOBSET_CRD")):
    pytest.skip("PGJAX_JOBSET_CRD is not set")
  definition = yaml.safe_load(pathlib.Path(name).read_text())
  [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1alpha2"]
  schema = json.loads(json.dumps(version["schema"]["openAPIV3Schema"]))
  without_unknown_fields(schema)
  schema["properties"]["metadata"] = dict(type="object")
  validator = jsonschema.Draft7Validator(schema)
  jobset = loaded(root, "jobset.yaml")
  assert [error.message for error in validator.iter_errors(jobset)] == []
  jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["paralellism"] = 3
  assert len(list(validator.iter_errors(jobset))) == 1


def without_unknown_fields(schema):
  """Kubernetes drops unknown fields in silence; here they are errors."""
  if isinstance(schema, dict):
    if schema.get("x-kubernetes-int-or-string"):
      schema.pop("pattern", None)
      schema.pop("anyOf", None)
      schema["type"] = ["integer", "string"]
    if "properties" in schema and schema.get("type") == "object":
      schema.setdefault("additionalProperties", False)
  for value in schema.values() if isinstance(schema, dict) else schema:
    if isinstance(value, dict | list):
      without_unknown_fields(value)


@pytest.mark.cluster
def test_skypilot_reads_its_file(root):
  sky = pytest.importorskip("sky")
  task = sky.Task.from_yaml(str(root / "launch/skypilot.yaml"))
  assert task.num_nodes == 1
