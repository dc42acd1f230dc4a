"""Google Cloud in a folder: stand-ins for gcloud, xpk, kubectl, sky, uv and the rest, which record how they were called.

`gcloud compute tpus tpu-vm ssh` really runs its command, on hosts that are folders: what the scripts do on a pod is tried on
processes of this machine.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from places import LAUNCH

WHERE = ["--zone=us-east5-a", "--project=mine"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
TYPE = "tpu.nodeSpec[0].node.acceleratorType.basename()"
LIST = [*QUEUE, "list", *WHERE, "--filter=name~/judge$", f"--format=value(state.state,{TYPE})"]
IMAGE = "--image=registry.example/mine/images/mtjudge:1"

RECORD = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" $'\\1' >>"$CLOUD/log" # one write: hosts call at the same time
"""

# State of the request and its accelerator type: the first line of `states`, which goes as long as another follows; where it is
# empty, there is nothing to describe or to reach. A worker in `dead` has no ssh.
GCLOUD = (
    RECORD
    + r"""
case "$*" in
*"queued-resources list"*)
  head -n 1 "$CLOUD/states"
  [[ $(wc -l <"$CLOUD/states") -le 1 ]] || sed -i 1d "$CLOUD/states" ;;
*"tpu-vm"*) [[ -s $CLOUD/states ]] || { echo "ERROR: NOT_FOUND" >&2 && exit 1; } ;;&
*"tpu-vm describe"*) cat "$CLOUD/count" ;;
*"tpu-vm ssh"* | *"tpu-vm scp"*)
  status=0 files=() pids=()
  for word; do
    case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    /* | *.lock) files+=("$word") ;;
    esac
  done
  for ((w = 0; w < $(<"$CLOUD/count"); w++)); do
    [[ $worker == all || $worker == "$w" ]] || continue
    if grep -qx "$w" "$CLOUD/dead"; then echo "ssh: connect to host $w" >&2 && status=255 && continue; fi
    mkdir -p "$CLOUD/hosts/$w"
    if ((${#files[@]})); then cp "${files[@]}" "$CLOUD/hosts/$w/" && continue; fi
    (cd "$CLOUD/hosts/$w" && HOME=$PWD HOSTNAME=host-$w TPU_LOCKFILE=$PWD/lockfile bash -c "$command" >ssh.out) &
    pids[w]=$!
  done
  for w in "${!pids[@]}"; do # at the same time, as gcloud does; what they print by worker
    wait "${pids[w]}" || status=$?
    cat "$CLOUD/hosts/$w/ssh.out"
  done
  exit "$status" ;;
esac
"""
)

UV = (
    RECORD
    + r"""
case "$1 $2" in
venv*) mkdir -p venv/bin && ln -sf "$PYTHON" venv/bin/python ;;
"pip freeze") cat "$CLOUD/packages.$HOSTNAME" 2>/dev/null || cat "$CLOUD/packages" ;;
esac
"""
)

STUBS = {
    "gcloud": GCLOUD,
    "uv": UV,
    "xpk": RECORD,
    "kubectl": RECORD,
    "sky": RECORD,
    "hf": RECORD + 'mkdir -p "${@: -1}" && echo weights >"${@: -1}/model.safetensors"',
    "sudo": '#!/usr/bin/env bash\nexec "${@:2}"',
    "lsof": '#!/usr/bin/env bash\ncat "$CLOUD/holders.$HOSTNAME" 2>/dev/null',
}


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Cloud:
    def __init__(self, folder: Path, hosts: int = 2):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for name, text in STUBS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.write("count", f"{hosts}\n")
        self.write("states", "ACTIVE\n")
        self.write("dead", "")
        self.write("packages", "jax==0.10.2\nlibtpu==0.0.42\nnumpy==2.4.0\n")
        self.launch = LAUNCH

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def copy_of_repository(self) -> None:
        """The scripts then run in a small repository with one commit, so that it does not matter what this one has changed."""
        root = self.folder / "repository"
        shutil.copytree(LAUNCH, root / "launch")
        (root / "pyproject.toml").write_text("[project]\n")
        self.launch = root / "launch"
        subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
        self.commit = self.commit_all("First")

    def commit_all(self, message: str, *new: str) -> str:
        """Its name, of all that is in the small repository and of these new empty files."""
        root = self.launch.parent
        for name in new:
            (root / name).touch()
        git = ["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@b"]
        for words in (["add", "-A"], ["commit", "-qm", message]):
            subprocess.run([*git, *words], check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def environment(self) -> dict[str, str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "CLOUD": str(self.folder), "PYTHON": sys.executable, "TMPDIR": str(self.folder)}

    def start(self, script: str, *flags: object) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.launch / script), *map(str, flags)],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests in the background of a shell script inherit an ignored SIGINT, which bash could not trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script: str, *flags: object, seconds: float = 60) -> Ended:
        process = self.start(script, *flags)
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return Ended(process.returncode, out, err)

    def calls(self, *, keep: bool = False) -> list[list[str]]:
        """What was called since the last time this was asked, and not kept."""
        log = self.folder / "log"
        text = log.read_text() if log.exists() else ""
        if not keep:
            log.unlink(missing_ok=True)
        return [record.split("\0")[:-1] for record in text.split("\1\0")[:-1]]

    def host(self, worker: int) -> Path:
        return self.folder / "hosts" / str(worker)
