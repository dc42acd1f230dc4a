"""What the scripts of launch/ refuse, in one line and before anything is done: wrong words, and steps before their turn."""

import shutil

import pytest
from launching import IMAGE, LIST, WHERE, Cloud

ZONE = ["judge", "--zone=us-east5-a"]
SETUP = [*ZONE, "--jax=0.10.2"]

REFUSED = [  # script, flags, the line
    ("tpu_create.sh", ["judge", *WHERE], "--topology=.. is missing: see --help"),
    ("tpu_create.sh", ["--topology=v5p:4x4x4", *WHERE], "one name is needed, 0 are given: see --help"),
    ("tpu_create.sh", ["a", "b", *WHERE], "one name is needed, 2 are given (a b): see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4"], "--zone=.. is missing: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", "--zone=europe"], "--zone=europe: must be a zone such as us-east5-a"),
    (
        "tpu_create.sh",
        ["judge", "--topology=v5p:4x4x4", *WHERE, "--spot", "--reserved"],
        "--spot and --reserved: give only one",
    ),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--spt"], "unknown flag --spt: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "-s"], "unknown flag -s: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--spot=1"], "--spot takes no value"),
    ("tpu_create.sh", ["judge", "--topology="], "--topology= is empty"),
    ("tpu_create.sh", ["judge", "--topology"], "--topology needs a value: --topology=.."),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--poll=1s"], "--poll=1s: must be a whole number, 0 or more"),
    (
        "tpu_create.sh",
        ["Judge_1", "--topology=v5p:4x4x4", *WHERE],
        "name Judge_1: use at most 40 of a-z, 0-9 and -, with a letter first and no - last",
    ),
    (
        "tpu_create.sh",
        ["judge", "--topology=tpu7x:4x4x4", *WHERE],
        "--topology=tpu7x:4x4x4: the Cloud TPU API has no tpu7x, but GKE has: use launch/xpk_run.sh or launch/jobset_run.sh",
    ),
    (
        "tpu_keep.sh",
        ["judge", "--topology=tpu7x-8", *WHERE, "--jax=0.10.2", "--lock=l", "--", "x"],
        "--topology=tpu7x:2x2x1: the Cloud TPU API has no tpu7x, but GKE has: use launch/xpk_run.sh or launch/jobset_run.sh",
    ),
    (
        "sky_run.sh",
        ["judge", "--topology=tpu7x:4x4x4", *WHERE[:1], "--", "x"],
        "--topology=tpu7x:4x4x4: the Cloud TPU API has no tpu7x, but GKE has: use launch/xpk_run.sh or launch/jobset_run.sh",
    ),
    (
        "sky_run.sh",
        ["judge", "--topology=v6e:8x8", *WHERE, "--", "x"],
        "--project=mine: SkyPilot takes no project with a command: in ~/.sky/config.yaml write "
        "workspaces: {default: {gcp: {project_id: mine}}}, or gcloud config set project mine",
    ),
    ("tpu_setup.sh", ["judge", *WHERE], "--jax=.. is missing: see --help"),
    ("tpu_setup.sh", ["judge", *WHERE, "--jax=>=0.10"], "--jax=>=0.10: must be one version, such as 0.10.2"),
    ("tpu_setup.sh", ["judge", *WHERE, "--jax=0.10.2", "--python=python3"], "--python=python3: must be a version such as 3.12"),
    (
        "tpu_run.sh",
        ["judge", *WHERE],
        "nothing to run: end the line with -- mtjudge train --config=.. --workdir=gs://..",
    ),
    ("tpu_run.sh", ["judge", *WHERE, "--run=a/b", "--", "x"], "--run=a/b: use only A-Z, a-z, 0-9, _ and -"),
    ("tpu_run.sh", ["judge", *WHERE, "--iap", "--internal-ip", "--", "x"], "--internal-ip and --iap: give only one"),
    ("tpu_logs.sh", ["judge", *WHERE, "--worker=first"], "--worker=first: must be a number or all"),
    (
        "tpu_model.sh",
        ["judge", *WHERE, "--model=Qwen/Q", "--to=/data"],
        "--to=/data: must be a path in a bucket, gs://bucket/path",
    ),
    (
        "tpu_model.sh",
        ["judge", *WHERE, "--model=Qwen", "--to=gs://bucket/q"],
        "--model=Qwen: give its name on the hub, such as Qwen/Qwen3-VL-8B-Instruct",
    ),
    (
        "xpk_run.sh",
        ["judge" * 9, *WHERE, "--cluster=c", IMAGE, "--topology=v5p:4x4x4", "--", "x"],
        f"name {'judge' * 9}: use at most 40 of a-z, 0-9 and -, with a letter first and no - last",
    ),
    (
        "xpk_run.sh",
        ["judge", *WHERE, "--cluster=c", IMAGE, "--topology=v5p:4x4x4", "--priority=urgent", "--", "x"],
        "--priority=urgent: very-low, low, medium, high or very-high",
    ),
    (
        "jobset_run.sh",
        ["judge-", "--topology=v5p:4x4x4", IMAGE, "--", "x"],
        "name judge-: use at most 40 of a-z, 0-9 and -, with a letter first and no - last",
    ),
    (
        "jobset_run.sh",
        ["judge", "--topology=v5p:4x4x4", "--image=a b", "--", "x"],
        "--image=a b: must be an image such as registry/repository/mtjudge:1",
    ),
    (
        "jobset_run.sh",
        ["judge", "--topology=v5p:4x4x4", IMAGE, "--service-account=j@mine.iam", "--", "x"],
        "--service-account=j@mine.iam: must be a name in Kubernetes, not an e-mail address",
    ),
    (
        "xpk_run.sh",
        ["judge", *WHERE, "--cluster=c", "--image=ADDRESS/mtjudge:1", "--topology=v5p:4x4x4", "--", "x"],
        "--image=ADDRESS/mtjudge:1: must be an image such as registry/repository/mtjudge:1",
    ),
    (
        "tpu_run.sh",
        ["judge", *WHERE, "mtjudge", "train", "--config=c"],
        "unknown flag --config: put -- before the command, -- mtjudge ..",
    ),
    (
        "tpu_run.sh",
        ["judge", *WHERE, "mtjudge", "train"],
        "one name is needed, 3 are given (judge mtjudge train): see --help; put -- before the command, -- mtjudge ..",
    ),
    ("tpu_run.sh", ["judge", *WHERE, "-n", "2", "--", "x"], "unknown flag -n: see --help"),
    ("local_multiprocess.sh", ["--devices=2", "-n"], "--processes needs a value: --processes=.."),
    ("local_multiprocess.sh", ["--", "x"], "--processes=.. is missing: see --help"),
    ("local_multiprocess.sh", ["-n", "0", "--", "x"], "--processes=0: must be 1 or more"),
    ("local_multiprocess.sh", ["-n", "2", "mtjudge", "--", "x"], "unexpected mtjudge: the command goes after --"),
    ("local_multiprocess.sh", ["-n", "2", "--devices=many", "--", "x"], "--devices=many: must be a whole number, 0 or more"),
    ("tpu_keep.sh", ["judge", *WHERE, "--topology=v5p:4x4x4", "--jax=0.10.2", "--", "x"], "--lock=.. is missing: see --help"),
]


@pytest.mark.parametrize("script, flags, line", REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_in_one_line(script, flags, line, tmp_path):
    cloud = Cloud(tmp_path)
    ended = cloud.run(script, *flags)
    assert (ended.status, ended.err, ended.out, cloud.calls()) == (2, f"error: {line}\n", "", [])


@pytest.mark.parametrize("script", ["tpu_create.sh", "xpk_run.sh", "jobset_run.sh", "sky_run.sh", "tpu_keep.sh"])
def test_a_wrong_topology_names_the_known_ones(script, tmp_path):
    given = {
        "tpu_create.sh": WHERE,
        "xpk_run.sh": [*WHERE, "--cluster=c", IMAGE, "--", "x"],
        "jobset_run.sh": [IMAGE, "--", "x"],
        "sky_run.sh": [*WHERE[:1], "--", "x"],
        "tpu_keep.sh": [*WHERE, "--jax=0.10.2", "--lock=l", "--", "x"],
    }[script]
    ended = Cloud(tmp_path).run(script, "judge", "--topology=v5p:3x3x3", *given)
    assert ended.status == 2
    assert ended.err.startswith("error: --topology=v5p:3x3x3 is not known; known: v4:2x2x1 ")
    assert {"v5e:4x4", "v5p:4x4x4", "v5p:2x4x4", "v6e:8x8"} <= set(ended.err.split())


SDK = "gcloud is not on PATH: https://cloud.google.com/sdk/docs/install"
KUBECTL = "kubectl is not on PATH: gcloud components install kubectl gke-gcloud-auth-plugin"
SLICE = "--topology=v5p:4x4x4"
TOOLS = [  # script, flags, the line
    ("tpu_create.sh", [*WHERE, SLICE], SDK),
    ("tpu_setup.sh", [*WHERE, "--jax=0.10.2", "--lock=new/pod.lock"], SDK),
    ("tpu_run.sh", [*WHERE, "--", "x"], SDK),
    ("tpu_status.sh", [*WHERE, "--wait"], SDK),
    ("tpu_keep.sh", [*WHERE, SLICE, "--jax=0.10.2", "--lock=new/pod.lock", "--", "x"], SDK),
    ("xpk_run.sh", [*WHERE, SLICE, IMAGE, "--cluster=c", "--", "x"], "xpk is not on PATH: pip install xpk"),
    ("jobset_run.sh", [SLICE, IMAGE, "--", "x"], KUBECTL),
    ("sky_run.sh", [SLICE, *WHERE[:1], "--", "x"], 'sky is not on PATH: pip install "skypilot[gcp]"'),
]


@pytest.mark.parametrize("script, flags, line", TOOLS, ids=[script for script, *_ in TOOLS])
def test_a_tool_that_is_not_on_the_path(script, flags, line, tmp_path, monkeypatch):
    cloud = Cloud(tmp_path)
    shutil.rmtree(cloud.bin)
    cloud.bin.mkdir()
    for tool in ("bash", "dirname", "sed", "git", "wc"):
        (cloud.bin / tool).symlink_to(shutil.which(tool))
    monkeypatch.setattr(Cloud, "environment", lambda self: {"PATH": str(self.bin), "CLOUD": str(self.folder)})
    before = sorted(tmp_path.rglob("*"))
    ended = cloud.run(script, "judge", *flags)
    assert (ended.status, ended.err, ended.out) == (2, f"error: {line}\n", "")
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


BEFORE_CREATE = [
    ("tpu_setup.sh", ["--jax=0.10.2", "--committed"]),
    ("tpu_model.sh", ["--model=Qwen/Q", "--to=gs://bucket/q"]),
    ("tpu_run.sh", ["--", "x"]),
    ("tpu_logs.sh", []),
    ("tpu_stop.sh", []),
]


@pytest.mark.parametrize("script, flags", BEFORE_CREATE, ids=[script for script, _ in BEFORE_CREATE])
def test_before_the_slice_is_there(script, flags, tmp_path):
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    cloud.write("states", "")
    ended = cloud.run(script, "judge", *WHERE, *flags)
    first = (
        "error: judge is not in us-east5-a: run launch/tpu_create.sh judge --zone=us-east5-a --project=mine --topology=.. first"
    )
    assert (ended.status, ended.err.splitlines()) == (2, ["ERROR: NOT_FOUND", first])
    assert cloud.calls()[-1] == LIST


def test_a_slice_of_that_name_and_of_another_shape(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.write("states", "ACTIVE\tv5p-128\n")
    assert cloud.run("tpu_create.sh", "judge", *WHERE, SLICE).status == 0
    cloud.calls()
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v5p:8x8x8")
    line = "error: judge exists as v5p-128 (ACTIVE), but v5p:8x8x8 is v5p-1024: take another name, or run "
    delete = "launch/tpu_delete.sh judge --zone=us-east5-a --project=mine first"
    assert (ended.status, ended.err.splitlines()[1:], cloud.calls()) == (2, [line + delete], [LIST])


BEFORE_SETUP = {
    "tpu_run.sh": ["--", "true"],
    "tpu_status.sh": ["--wait"],
    "tpu_logs.sh": ["--worker=all"],
    "tpu_stop.sh": [],
    "tpu_model.sh": ["--model=Qwen/Q", "--to=gs://bucket/q"],
}


@pytest.mark.parametrize("script", BEFORE_SETUP)
def test_before_the_set_up(script, tmp_path):
    cloud = Cloud(tmp_path, hosts=3)
    ended = cloud.run(script, *ZONE, *BEFORE_SETUP[script])
    line = "error: not set up: run launch/tpu_setup.sh judge --zone=us-east5-a --jax=.. first\n"
    assert (ended.status, ended.out, ended.err) == (2, "", line)


def test_another_commit_than_that_of_the_hosts(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    cloud.copy_of_repository()
    assert cloud.run("tpu_setup.sh", *SETUP).status == 0
    old = cloud.commit
    new = cloud.commit_all("Second", "new.py")
    ended = cloud.run("tpu_run.sh", *ZONE, "--", "true")
    line = f"this host has commit {old[:12]}, not {new[:12]}: run launch/tpu_setup.sh again, or give --as-set-up"
    assert (ended.status, ended.err.splitlines()[0]) == (2, f"error: host-0: {line}")
    assert not (cloud.host(0) / "mtjudge/runs").exists()
    assert cloud.run("tpu_run.sh", *ZONE, "--as-set-up", "--", "true").status == 0
    assert cloud.run("tpu_setup.sh", *SETUP).status == 0
    assert cloud.run("tpu_run.sh", *ZONE, "--", "true").status == 0
    assert (cloud.host(0) / "mtjudge/commit").read_text() == f"{new}\n"


def test_a_jax_that_is_not_that_of_the_lock(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    lock = tmp_path / "pod.lock"
    lock.write_text("jax==0.10.2\njaxlib==0.10.2\n")
    line = f"error: --jax=0.11.0: {lock} has jax 0.10.2: give --jax=0.10.2, or a new file as --lock\n"
    given = [*ZONE, "--jax=0.11.0", f"--lock={lock}"]
    for script, flags in (("tpu_setup.sh", []), ("tpu_keep.sh", ["--topology=v6e:2x4", "--", "true"])):
        ended = cloud.run(script, *given, *flags)
        assert (ended.status, ended.err, cloud.calls()) == (2, line, [])
