"""The scripts of launch/: what they call, letter by letter, and what they refuse."""

import math
import re
import shlex

import pytest
from launching import IMAGE, LAUNCH, LIST, QUEUE, WHERE, Cloud

from mtjudge_jax.plan.slices import known_slices, tpu_slice

TRAIN = ["mtjudge", "train", "--config=configs/mine.py", "--workdir=gs://bucket/run", "--config.data.tasks=a b"]
HOST = "[ -e mtjudge/code ] || exit 3; bash mtjudge/code/launch/host.sh"
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
COUNT = [*TPU_VM, "describe", "judge", *WHERE, "--format=value(networkEndpoints.len())"]
SHM = "--scratch=/dev/shm"


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


def test_slices(tmp_path):
    """Names of Google Cloud for topologies, as its pages and XPK's table have them."""
    known = {
        "v5p:4x4x4": "v5p-128 64 16 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v5p:2x4x4": "v5p-64 32 8 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v6e:8x8": "v6e-64 64 16 v2-alpha-tpuv6e tpu-v6e-slice ct6e-standard-4t",
        "v5e:4x4": "v5litepod-16 16 4 v2-alpha-tpuv5-lite tpu-v5-lite-podslice ct5lp-hightpu-4t",
        "v5p:16x16x24": "v5p-12288 6144 1536 v2-alpha-tpuv5 tpu-v5p-slice ct5p-hightpu-4t",
        "v4:2x2x4": "v4-32 16 4 tpu-ubuntu2204-base tpu-v4-podslice ct4p-hightpu-4t",
        "tpu7x:4x4x4": "tpu7x-128 64 16 - tpu7x tpu7x-standard-4t",
    }
    text = 'source common.sh; for s; do slice "$s"; echo "$SLICE $TYPE $CHIPS $HOSTS $RUNTIME $GKE $MACHINE"; done\n'
    cloud = Cloud(tmp_path)
    (tmp_path / "slices.sh").write_text(text.replace("common.sh", str(LAUNCH / "common.sh")))
    cloud.launch = tmp_path
    assert cloud.run("slices.sh", *known).out.splitlines() == [f"{name} {line}" for name, line in known.items()]
    names = {line.split()[0]: f"{name} {line}" for name, line in known.items()}
    assert cloud.run("slices.sh", *names).out.splitlines() == list(names.values())
    assert cloud.run("slices.sh", "v5e-16").out == f"v5e:4x4 {known['v5e:4x4']}\n"


def test_slices_are_those_of_the_plan(tmp_path):
    """The same names mean the same slices in `mtjudge plan` and here: shapes, chips, and Google Cloud's own names."""
    cloud = Cloud(tmp_path)
    ask = 'for s; do slice "$s"; echo "$SLICE $TYPE $CHIPS $HOSTS"; slice "$TYPE"; echo "$SLICE"; done'
    (tmp_path / "slices.sh").write_text(f"source {LAUNCH}/common.sh; {ask}\n")
    cloud.launch = tmp_path
    told = cloud.run("slices.sh", *known_slices()).out.splitlines()
    assert len(told) == 2 * len(known_slices()) == 90
    for name, line, again in zip(known_slices(), told[::2], told[1::2], strict=True):
        slice_, cloud_name, chips, hosts = line.split()
        place = tpu_slice(name)
        assert (slice_, again, tpu_slice(cloud_name)) == (name, name, place), line
        assert (int(chips), int(hosts)) == (math.prod(place.shape), place.devices // place.host_devices), line
    unknown = cloud.run("slices.sh", "x").err.partition("known: ")[2].split()
    assert unknown == known_slices()


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
    said = "error: judge is FAILED: another zone or another size may be free; the same command requests it again"
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
