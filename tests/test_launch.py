"""The scripts of launch/: what they call, letter by letter, and what they refuse."""

import re
import shlex
import shutil

import pytest
from launching import LAUNCH, Cloud

TRAIN = ["mtjudge", "train", "--config=configs/mine.py", "--workdir=gs://bucket/run", "--config.data.tasks=a b"]
HOST = "[ -e mtjudge/code ] || exit 3; bash mtjudge/code/launch/host.sh"
WHERE = ["--zone=us-east5-a", "--project=mine"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
TYPE = "tpu.nodeSpec[0].node.acceleratorType.basename()"
LIST = [*QUEUE, "list", *WHERE, "--filter=name~/judge$", f"--format=value(state.state,{TYPE})"]
COUNT = [*TPU_VM, "describe", "judge", *WHERE, "--format=value(networkEndpoints.len())"]
SHM = "--scratch=/dev/shm"
IMAGE = "--image=registry.example/mine/images/mtjudge:1"


def ssh(worker: str, command: str) -> list[str]:
    return [*TPU_VM, "ssh", "judge", *WHERE, f"--worker={worker}", f"--command={command}"]


def create(*flags: str, kind: str = "v5p-128", runtime: str = "v2-alpha-tpuv5") -> list[str]:
    given = [f"--accelerator-type={kind}", f"--runtime-version={runtime}", *flags]
    return [*QUEUE, "create", "judge", "--node-id=judge", *WHERE, *given]


TRAIN_LINE = "mtjudge train --config=configs/mine.py --workdir=gs://bucket/run '--config.data.tasks=a b'"
CALLS = {  # name: script, flags, what is called
    "spot": (
        "tpu_create.sh",
        ["--topology=v5p:4x4x4", "--spot", "--service-account=judge@mine.iam", "--valid-until=6h"],
        [LIST, create("--spot", "--service-account=judge@mine.iam", "--valid-until-duration=6h"), LIST, COUNT],
    ),
    "reserved": (
        "tpu_create.sh",
        ["--topology", "v5litepod-16", "--reserved", "--network=n", "--subnetwork=s", "--internal-ips"],
        [
            LIST,
            create(
                "--reserved",
                "--network=n",
                "--subnetwork=s",
                "--internal-ips",
                kind="v5litepod-16",
                runtime="v2-alpha-tpuv5-lite",
            ),
            LIST,
            COUNT,
        ],
    ),
    "on demand": (
        "tpu_create.sh",
        ["--topology=v6e:8x8", "--runtime=my-image"],
        [LIST, create(kind="v6e-64", runtime="my-image"), LIST, COUNT],
    ),
    "run": (
        "tpu_run.sh",
        ["--run=big", "--restarts=3", "--as-set-up", "--", *TRAIN],
        [COUNT, ssh("all", f"{HOST} start --run=big --restarts=3 -- {TRAIN_LINE}")],
    ),
    "status": ("tpu_status.sh", [], [ssh("all", f"{HOST} status --run=train")]),
    "logs": ("tpu_logs.sh", ["--worker=1", "--lines=9"], [ssh("1", f"{HOST} logs --run=train --lines=9")]),
    "stop": ("tpu_stop.sh", ["--grace=60", "--force"], [COUNT, ssh("all", f"{HOST} stop --grace=60 --force")]),
    "delete": ("tpu_delete.sh", ["--yes"], [[*QUEUE, "delete", "judge", *WHERE, "--force", "--quiet"]]),
    "model": (
        "tpu_model.sh",
        ["--model=Qwen/Qwen3-VL-8B-Instruct", "--to=gs://bucket/models/8B", "--revision=abc", SHM],
        [ssh("0", f"{HOST} model --model=Qwen/Qwen3-VL-8B-Instruct --to=gs://bucket/models/8B --revision=abc {SHM}")],
    ),
    "xpk": (
        "xpk_run.sh",
        ["--cluster=tpus", "--topology=v5p:4x4x4", IMAGE, "--", *TRAIN],
        [
            [
                *["xpk", "workload", "create", "--workload=judge", "--cluster=tpus", *WHERE, "--tpu-type=v5p-128"],
                *["--num-slices=1", IMAGE.replace("--image", "--docker-image"), "--max-restarts=50"],
                *["--restart-on-exit-codes=1,75", "--termination-grace-period-seconds=600", "--priority=medium"],
                f"--command=exec {TRAIN_LINE}",
            ]
        ],
    ),
    "jobset": (
        "jobset_run.sh",
        ["--topology=v6e:8x8", IMAGE, "--namespace=team", "--", *TRAIN],
        [["kubectl", "create", "--filename=judge.jobset.yaml", "--namespace=team"]],
    ),
    "sky": (
        "sky_run.sh",
        ["--topology=v6e:8x8", "--spot", "--jax=0.10.3", "--", *TRAIN],
        [
            [
                *["sky", "jobs", "launch", "launch/sky.yaml", "--name=judge", "--infra=gcp/us-east5/us-east5-a"],
                *["--gpus=tpu-v6e-64:1", "--use-spot", f"--env=COMMAND={TRAIN_LINE}", "--env=RESTARTS=50"],
                *["--env=JAX_VERSION=0.10.3", "--yes", "--detach-run"],
            ]
        ],
    ),
}


def flags_of(script: str, flags: list[str]) -> list[str]:
    where = {"jobset_run.sh": [], "sky_run.sh": WHERE[:1]}.get(script, WHERE)
    return ["judge", *where, *flags]


@pytest.mark.parametrize("name", CALLS)
def test_calls(name, tmp_path):
    script, flags, expected = CALLS[name]
    cloud = Cloud(tmp_path, hosts=0)  # without a host nothing runs on one; the scripts then count none and are content
    cloud.write("states", "\nACTIVE\n")
    dry = cloud.run(script, "--dry-run", *flags_of(script, flags))
    assert (dry.status, [shlex.split(line) for line in dry.out.splitlines()]) == (0, expected), dry.err
    assert cloud.calls() == []
    ended = cloud.run(script, *flags_of(script, flags))
    assert cloud.calls() == expected, ended.err
    assert ended.status == (1 if script == "tpu_status.sh" else 0), ended.err


def test_setup_calls(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    archive = f"mtjudge-code-{cloud.commit[:12]}.tgz"
    scp = [*TPU_VM, "scp", str(tmp_path / archive), "judge:", *WHERE, "--worker=all"]
    unpack = f"rm -rf mtjudge/code.new && mkdir -p mtjudge/code.new && tar -xzf {archive} -C mtjudge/code.new"
    setup = f"bash mtjudge/code.new/launch/host.sh setup --archive={archive} --jax=0.10.2 --python=3.12 --extras=tpu,gcs"
    setup += f" --commit={cloud.commit}"
    expected = [COUNT, scp, ssh("all", f"{unpack} && {setup}"), ssh("0", "cat mtjudge/freeze.txt")]
    flags = ["judge", *WHERE, "--jax=0.10.2", f"--lock={tmp_path / 'pod.lock'}"]
    dry = cloud.run("tpu_setup.sh", *flags, "--dry-run")
    git = ["git", "-C", str(cloud.launch.parent), "archive", "--format=tar.gz", f"--output={tmp_path / archive}", cloud.commit]
    assert [shlex.split(line) for line in dry.out.splitlines()] == [COUNT, git, *expected[1:]]
    assert (cloud.calls(), (tmp_path / archive).exists()) == ([], False)
    ended = cloud.run("tpu_setup.sh", *flags)
    assert ended.status == 0, ended.err
    assert [call for call in cloud.calls() if call[0] == "gcloud"] == expected


def test_reached_by_a_tunnel_or_by_internal_addresses(tmp_path):
    cloud = Cloud(tmp_path)
    for flag, words in (("--iap", ["gcloud", "alpha"]), ("--internal-ip", ["gcloud"])):
        line = cloud.run("tpu_logs.sh", "judge", "--zone=us-east5-a", flag, "--dry-run").out
        given = {"--iap": "--tunnel-through-iap", "--internal-ip": "--internal-ip"}[flag]
        assert shlex.split(line) == [
            *words,
            *["compute", "tpus", "tpu-vm", "ssh", "judge", "--zone=us-east5-a", "--worker=0", given],
            f"--command={HOST} logs --run=train --lines=50",
        ]


REFUSED = [  # script, flags, the line
    ("tpu_create.sh", ["judge", *WHERE], "--topology=.. is missing: see --help"),
    ("tpu_create.sh", ["--topology=v5p:4x4x4", *WHERE], "one name is needed, 0 are given: see --help"),
    ("tpu_create.sh", ["a", "b", *WHERE], "one name is needed, 2 are given (a b): see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4"], "--zone=.. is missing: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", "--zone=europe"], "--zone=europe: a zone is needed, such as us-east5-a"),
    (
        "tpu_create.sh",
        ["judge", "--topology=v5p:4x4x4", *WHERE, "--spot", "--reserved"],
        "--spot and --reserved: one of the two",
    ),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--spt"], "no flag --spt: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "-s"], "no flag -s: see --help"),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--spot=1"], "--spot takes no value"),
    ("tpu_create.sh", ["judge", "--topology="], "--topology= is empty"),
    ("tpu_create.sh", ["judge", "--topology"], "--topology needs a value: --topology=.."),
    ("tpu_create.sh", ["judge", "--topology=v5p:4x4x4", *WHERE, "--poll=1s"], "--poll=1s: a whole number, 0 or more"),
    (
        "tpu_create.sh",
        ["Judge_1", "--topology=v5p:4x4x4", *WHERE],
        "name Judge_1: at most 40 of a-z, 0-9 and -, first a letter, last no -",
    ),
    (
        "tpu_create.sh",
        ["judge", "--topology=v5p-64", *WHERE],
        "--topology=v5p-64: 32 chips (v5p:2x4x4) in Google's count of cores, 64 chips in mtjudge plan: "
        "write the shape, chip:AxBxC",
    ),
    (
        "tpu_keep.sh",
        ["judge", "--topology=v4-32", *WHERE, "--jax=0.10.2", "--lock=l", "--", "x"],
        "--topology=v4-32: 16 chips (v4:2x2x4) in Google's count of cores, 32 chips in mtjudge plan: write the shape, chip:AxBxC",
    ),
    ("tpu_setup.sh", ["judge", *WHERE], "--jax=.. is missing: see --help"),
    ("tpu_setup.sh", ["judge", *WHERE, "--jax=>=0.10"], "--jax=>=0.10: one version, such as 0.10.2"),
    ("tpu_setup.sh", ["judge", *WHERE, "--jax=0.10.2", "--python=python3"], "--python=python3: such as 3.12"),
    (
        "tpu_run.sh",
        ["judge", *WHERE],
        "nothing to run: end the line with -- mtjudge train --config=.. --workdir=gs://..",
    ),
    ("tpu_run.sh", ["judge", *WHERE, "--run=a/b", "--", "x"], "--run=a/b: of A-Z, a-z, 0-9, _ and -"),
    ("tpu_run.sh", ["judge", *WHERE, "--iap", "--internal-ip", "--", "x"], "--internal-ip and --iap: one of the two"),
    ("tpu_logs.sh", ["judge", *WHERE, "--worker=first"], "--worker=first: a number, or all"),
    (
        "tpu_model.sh",
        ["judge", *WHERE, "--model=Qwen/Q", "--to=/data"],
        "--to=/data: a path in a bucket is needed, gs://bucket/path",
    ),
    (
        "tpu_model.sh",
        ["judge", *WHERE, "--model=Qwen", "--to=gs://bucket/q"],
        "--model=Qwen: as on the hub, Qwen/Qwen3-VL-8B-Instruct",
    ),
    (
        "xpk_run.sh",
        ["judge" * 9, *WHERE, "--cluster=c", IMAGE, "--topology=v5p:4x4x4", "--", "x"],
        f"name {'judge' * 9}: at most 40 of a-z, 0-9 and -, first a letter, last no -",
    ),
    (
        "xpk_run.sh",
        ["judge", *WHERE, "--cluster=c", IMAGE, "--topology=v5p:4x4x4", "--priority=urgent", "--", "x"],
        "--priority=urgent: very-low, low, medium, high or very-high",
    ),
    (
        "jobset_run.sh",
        ["judge-", "--topology=v5p:4x4x4", IMAGE, "--", "x"],
        "name judge-: at most 40 of a-z, 0-9 and -, first a letter, last no -",
    ),
    (
        "jobset_run.sh",
        ["judge", "--topology=v5p:4x4x4", "--image=a b", "--", "x"],
        "--image=a b: such as registry/repository/mtjudge:1",
    ),
    (
        "jobset_run.sh",
        ["judge", "--topology=v5p:4x4x4", IMAGE, "--service-account=j@mine.iam", "--", "x"],
        "--service-account=j@mine.iam: a name in Kubernetes, no e-mail address",
    ),
    (
        "xpk_run.sh",
        ["judge", *WHERE, "--cluster=c", "--image=ADDRESS/mtjudge:1", "--topology=v5p:4x4x4", "--", "x"],
        "--image=ADDRESS/mtjudge:1: such as registry/repository/mtjudge:1",
    ),
    (
        "tpu_run.sh",
        ["judge", *WHERE, "mtjudge", "train", "--config=c"],
        "no flag --config: put -- before the command, -- mtjudge ..",
    ),
    (
        "tpu_run.sh",
        ["judge", *WHERE, "mtjudge", "train"],
        "one name is needed, 3 are given (judge mtjudge train): see --help; put -- before the command, -- mtjudge ..",
    ),
    ("tpu_run.sh", ["judge", *WHERE, "-n", "2", "--", "x"], "no flag -n: see --help"),
    ("local_multiprocess.sh", ["--devices=2", "-n"], "--processes needs a value: --processes=.."),
    ("local_multiprocess.sh", ["--", "x"], "--processes=.. is missing: see --help"),
    ("local_multiprocess.sh", ["-n", "0", "--", "x"], "--processes=0: 1 or more"),
    ("local_multiprocess.sh", ["-n", "2", "mtjudge", "--", "x"], "unexpected mtjudge: the command goes after --"),
    ("local_multiprocess.sh", ["-n", "2", "--devices=many", "--", "x"], "--devices=many: a whole number, 0 or more"),
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


def test_slices(tmp_path):
    """Names of Google Cloud for topologies, as its pages and XPK's table have them."""
    known = {
        "v5p:4x4x4": "v5p-128 64 16 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v5p:2x4x4": "v5p-64 32 8 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v6e:8x8": "v6e-64 64 16 v2-alpha-tpuv6e tpu-v6e-slice ct6e-standard-4t",
        "v5e:4x4": "v5litepod-16 16 4 v2-alpha-tpuv5-lite tpu-v5-lite-podslice ct5lp-hightpu-4t",
        "v5p:16x16x24": "v5p-12288 6144 1536 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v4:2x2x4": "v4-32 16 4 tpu-ubuntu2204-base tpu-v4-podslice ct4p-hightpu-4t",
    }
    text = 'source common.sh; for s; do slice "$s"; echo "$SLICE $TYPE $CHIPS $HOSTS $RUNTIME $GKE $MACHINE"; done\n'
    cloud = Cloud(tmp_path)
    (tmp_path / "slices.sh").write_text(text.replace("common.sh", str(LAUNCH / "common.sh")))
    cloud.launch = tmp_path
    assert cloud.run("slices.sh", *known).out.splitlines() == [f"{name} {line}" for name, line in known.items()]
    names = {line.split()[0]: f"{name} {line}" for name, line in known.items() if name[:3] in ("v5e", "v6e")}  # they count chips
    assert cloud.run("slices.sh", *names).out.splitlines() == list(names.values())
    assert cloud.run("slices.sh", "v5e-16").out == f"v5e:4x4 {known['v5e:4x4']}\n", "as mtjudge plan writes it"


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
    first = "error: judge is not in us-east5-a: launch/tpu_create.sh judge --zone=us-east5-a --project=mine --topology=.. first"
    assert (ended.status, ended.err.splitlines()) == (2, ["ERROR: NOT_FOUND", first])
    assert cloud.calls()[-1] == LIST


def test_a_slice_of_that_name_and_of_another_shape(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.write("states", "ACTIVE\tv5p-128\n")
    assert cloud.run("tpu_create.sh", "judge", *WHERE, SLICE).status == 0
    cloud.calls()
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v5p:8x8x8")
    line = "error: judge is there as v5p-128 (ACTIVE), v5p:8x8x8 is v5p-1024: take another name, or "
    delete = "launch/tpu_delete.sh judge --zone=us-east5-a --project=mine first"
    assert (ended.status, ended.err.splitlines()[1:], cloud.calls()) == (2, [line + delete], [LIST])


def test_waits_until_active_and_says_the_state(tmp_path):
    cloud = Cloud(tmp_path, hosts=16)
    cloud.write("states", "\n\nWAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v5p:4x4x4", "--spot", "--poll=0")
    assert ended.err.splitlines() == [
        "judge: v5p:4x4x4, 64 chips, v5p-128 in us-east5-a, Spot",
        "judge: not listed yet",
        "judge: WAITING_FOR_RESOURCES",
        "judge: PROVISIONING",
        "judge: ACTIVE, 16 hosts; next: launch/tpu_setup.sh judge --zone=us-east5-a --jax=..",
    ]
    assert cloud.calls() == [LIST, create("--spot"), *[LIST] * 5, COUNT]
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v5p:4x4x4", "--spot", "--poll=0")
    assert (ended.status, cloud.calls()) == (0, [LIST, LIST, COUNT])  # there already


def test_a_request_that_failed_is_replaced_and_one_that_fails_is_said(tmp_path):
    cloud = Cloud(tmp_path)
    delete = [*QUEUE, "delete", "judge", *WHERE, "--force", "--quiet"]
    cloud.write("states", "SUSPENDING\nSUSPENDED\nACTIVE\n")
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v6e:4x4", "--poll=0")
    made = create(kind="v6e-16", runtime="v2-alpha-tpuv6e")
    assert (ended.status, cloud.calls()) == (0, [LIST, LIST, delete, made, LIST, COUNT])
    cloud.write("states", "\nFAILED\n")
    ended = cloud.run("tpu_create.sh", "judge", *WHERE, "--topology=v6e:4x4", "--poll=0")
    said = "error: judge is FAILED: another zone or another size may be free; the same command asks anew"
    assert (ended.status, ended.err.splitlines()[-1]) == (1, said)
    assert cloud.calls()[-1] == [*QUEUE, "describe", "judge", *WHERE, "--format=yaml(state)"]


def scripts() -> list[str]:
    return sorted(path.name for path in LAUNCH.glob("*.sh") if path.name not in ("common.sh", "tpu.sh"))


@pytest.mark.parametrize("script", scripts())
def test_help_names_every_flag(script, tmp_path):
    ended = Cloud(tmp_path).run(script, *(["stop"] if script == "host.sh" else []), "--help")
    assert (ended.status, ended.err) == (0, "")
    text = (LAUNCH / "tpu.sh").read_text() + (LAUNCH / script).read_text()
    lists = dict(re.findall(r"^([A-Z_]+)='(.*)'$", text, re.M))
    spec = re.sub(r"\$([A-Z_]+)", lambda found: lists[found[1]], re.search(r"^parse (['\"])(.*?)\1", text, re.M)[2])
    flags = spec.replace("=", "").split()
    assert [flag for flag in flags if not re.search(rf"--{flag}(?![\w-])", ended.out)] == []
    assert script == "host.sh" or "--dry-run" in ended.out
    assert ("\nto stop: Ctrl-C here first, then tpu_stop.sh\n" in ended.out) == (script == "tpu_keep.sh")


def test_quoted_words_come_back(tmp_path):
    cloud = Cloud(tmp_path)
    (tmp_path / "quoted.sh").write_text(f'source {LAUNCH / "common.sh"}; show "$@"\n')
    cloud.launch = tmp_path
    words = ["plain", "--a=b", "", "~/x", "it's", 'a "b"', "$HOME", "a b", "x;y", "*", "back\\slash", "#no", "{a,b}", "é"]
    line = cloud.run("quoted.sh", *words).out
    assert shlex.split(line) == words
    (tmp_path / "read.sh").write_text(f"printf '%s\\n' {line}")
    assert cloud.run("read.sh").out.splitlines() == words
