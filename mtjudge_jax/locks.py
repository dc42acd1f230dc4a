"""A folder is written by one command at a time: a lock that says who has it, on a disk or in a bucket.

On a disk the lock is a file under `flock`, which the system releases when the process ends, however it ends. A network file
system may not pass `flock` on to other machines, and a bucket has no such thing. So the owner also gives a sign of life every
_BEAT_SECONDS, in the file's time of change or as a new generation of the object. Where `flock` cannot tell, a newcomer watches
for _STALE_SECONDS, by its own clock: an owner that gives a sign is left alone, one that gives none has lost the lock.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mtjudge_jax.errors import UserError, leave
from mtjudge_jax.paths import AnyPath, absolute, delete_generation, in_bucket, read_generation, write_generation

_BEAT_SECONDS = 15.0
_STALE_SECONDS = 90.0
_LONG_AGO_SECONDS = 3600.0  # an owner that is silent for so long is not watched: no two clocks differ by that much
_RESTART_SECONDS = 900.0  # how long the same job, started again, waits for its earlier start: more than a last save takes
_POLL_SECONDS = 1.0
_PREFIX, _SUFFIX = ".mtjudge", ".lock"
_JOBS = ("SLURM_JOB_ID", "SKYPILOT_TASK_ID", "JOBSET_NAME")  # the same after a scheduler has started a job again
_HELD: set[str] = set()  # the locks of this process


class Owner(NamedTuple):
    """Who has a lock."""

    id: str
    host: str
    pid: int
    began: str  # of the process, as the system counts: another process may get the same number later
    system: str  # the running system, as one that sees all its processes
    space: str  # in which the process has this number: a container has its own
    since: str
    command: str
    job: str  # what a scheduler calls it, and how often it was started again; "" without one

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since})"


class InUse(UserError):
    """Another command has the folder."""


@contextlib.contextmanager
def held(folder: AnyPath, *, beside: bool = False, name: str = "", holds: bool = True, again: bool = False) -> Iterator[None]:
    """A context in which this process alone writes `folder`. Raises InUse, which names the owner, if another has it.

    beside: the folder appears whole or is replaced, so the lock is kept beside it. name: of the files that are written, if
    others may write other files there. holds: False on all processes of a run but the first, which has the lock for all. again:
    this process may have taken the lock before, in an outer context.

    A lock whose owner has died is taken over. A job that a scheduler started again waits for its earlier start to end.
    """
    folder = absolute(folder)
    path = _beside(folder) if beside else folder / f"{_PREFIX}{'-' * bool(name)}{name.replace('/', '_')}{_SUFFIX}"
    mark = _Object(path) if in_bucket(path) else _File(path)
    if not holds or (again and str(mark.path) in _HELD):
        yield
        return
    _refuse_neighbours(folder, mark)
    me = _this_process()
    try:
        _take(mark, me, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror or error}): give another folder") from error
    _HELD.add(str(mark.path))
    ended = threading.Event()
    thread = threading.Thread(target=_give_signs, args=(mark, me, folder, ended), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_BEAT_SECONDS)
        _HELD.discard(str(mark.path))
        with contextlib.suppress(Exception):  # the folder may be gone, or the bucket out of reach
            mark.release(me)


def _beside(folder: AnyPath) -> AnyPath:
    return folder.parent / f".{folder.name}{_SUFFIX}"


def _refuse_neighbours(folder: AnyPath, mark: "_File | _Object") -> None:
    """Raises InUse if a command that writes the folder whole and one that writes into it would meet."""
    paths = [_beside(folder)]
    if mark.path == _beside(folder):
        inside = folder.iterdir() if folder.is_dir() else []
        paths = [path for path in inside if path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)]
    for path in paths:
        other = _Object(path) if in_bucket(path) else _File(path)
        if owner := other.standing():
            raise InUse(_in_use(folder, owner))


def _in_use(folder: AnyPath, owner: Owner | None) -> str:
    who = str(owner) if owner else "another command"
    return f"{folder} is in use by {who}: wait until it ends, stop it, or choose another folder"


def _take(mark: "_File | _Object", me: Owner, folder: AnyPath) -> None:
    """Returns when the lock is this process's. Raises InUse."""
    watched, since, said, began = None, 0.0, False, time.monotonic()
    while True:
        free = mark.claim()
        owner, version, age = mark.read()
        if not free and owner is None and time.monotonic() - began < _POLL_SECONDS:
            time.sleep(_POLL_SECONDS / 20)  # its owner is about to write who it is
            continue
        if free and (owner is None or mark.is_dead(owner) or age > _LONG_AGO_SECONDS):
            if mark.write(me, version):
                return
            continue  # another was faster
        alive = not free or mark.is_alive(owner) or (watched is not None and watched[0] == owner.id and watched[1] != version)
        if alive and not _is_restart(owner, me):
            mark.leave()
            raise InUse(_in_use(folder, owner))
        if watched != (getattr(owner, "id", ""), version):
            watched, since = (getattr(owner, "id", ""), version), time.monotonic()
        now = time.monotonic()
        if free and not alive and now - since >= _STALE_SECONDS:
            if mark.write(me, version):
                return
            continue
        if now - began > _RESTART_SECONDS:
            mark.leave()
            raise InUse(_in_use(folder, owner))
        if not said:
            print(_waiting(folder, owner, alive), file=sys.stderr, flush=True)
            said = True
        time.sleep(_POLL_SECONDS)


def _waiting(folder: AnyPath, owner: Owner, alive: bool) -> str:
    if alive:
        return f"waiting up to {_RESTART_SECONDS:.0f} s for {folder}: this job's earlier start has it, {owner}"
    return f"waiting up to {_STALE_SECONDS:.0f} s for {folder}: {owner} had it and may still run on that machine"


def _is_restart(owner: Owner | None, me: Owner) -> bool:
    """Whether a scheduler has started the owner's job again as this process."""
    if owner is None or not me.job or owner.command != me.command:
        return False
    number = lambda job: job.partition(" ")[0]  # noqa: E731
    return number(owner.job) == number(me.job) and (owner.job, owner.host) != (me.job, me.host)


def _give_signs(mark: "_File | _Object", me: Owner, folder: AnyPath, ended: threading.Event) -> None:
    """Gives a sign of life until `ended`. Ends the process if another has taken the lock: two would write one folder."""
    while not ended.wait(_BEAT_SECONDS):
        other = None
        with contextlib.suppress(Exception):  # a network that fails for a while is no reason to end
            other = mark.beat(me)
        if other is not None and not ended.is_set():
            silent = "this process gave no sign of life for too long"
            print(f"error: {folder} was taken over by {other}: {silent}", file=sys.stderr, flush=True)
            leave(2)


class _File:
    """A lock on a disk."""

    def __init__(self, path: Path):
        self.path, self._fd, self._flocks = path, -1, True

    def claim(self) -> bool:
        """Whether no process that `flock` knows of has it."""
        if self._fd >= 0 and _names(self.path, self._fd):
            return True
        self.leave()
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                    os.close(fd)
                    raise
                self._flocks = False
            if _names(self.path, fd):  # else its owner has removed it meanwhile
                self._fd = fd
                os.register_at_fork(after_in_child=self._forget)
                return True
            os.close(fd)

    def read(self) -> tuple[Owner | None, Any, float]:
        """(owner or None, what changes with a sign of life, seconds since the last one)."""
        try:
            text, facts = self.path.read_bytes(), self.path.stat()
        except FileNotFoundError:
            return None, None, 0.0
        return _parse(text), (facts.st_ino, facts.st_mtime_ns), time.time() - facts.st_mtime

    def write(self, me: Owner, seen: Any) -> bool:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, _text(me), 0)
        if not _names(self.path, self._fd):  # its owner has removed it meanwhile
            return False
        if self._flocks:
            return True
        time.sleep(_POLL_SECONDS)  # two may have written: the later one has it
        owner = self.read()[0]
        return owner is not None and owner.id == me.id

    def is_dead(self, owner: Owner) -> bool:
        return owner.system == _system() if self._flocks else _is_gone(owner)

    def is_alive(self, owner: Owner) -> bool:
        return not self._flocks and _is_here(owner)

    def beat(self, me: Owner) -> Owner | None:
        """A sign of life. Returns the other owner if the lock was lost."""
        os.utime(self._fd)
        other = self.read()[0]  # None where the folder was removed, which is for others to report
        return other if other is not None and other.id != me.id else None

    def standing(self) -> Owner | None:
        """The owner, if it is alive as far as can be known without waiting."""
        if not self.path.exists():
            return None
        free = self.claim()
        owner, _, age = self.read()
        self.leave()
        if not free:
            return owner or _UNKNOWN
        return owner if owner and not self.is_dead(owner) and age < _STALE_SECONDS else None

    def leave(self) -> None:
        """Gives up a claim without a trace."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release(self, me: Owner) -> None:
        try:
            owner = self.read()[0]
            if owner is not None and owner.id == me.id and _names(self.path, self._fd):
                self.path.unlink()
        finally:
            self.leave()

    def _forget(self) -> None:
        """In a child of a fork, which must not keep the lock beyond its parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Object:
    """A lock in a bucket, whose objects are written only where they are as they were last seen."""

    def __init__(self, path: AnyPath):
        self.path, self._generation = path, 0

    def claim(self) -> bool:
        return True

    def read(self) -> tuple[Owner | None, Any, float]:
        text, generation = read_generation(self.path)
        at = json.loads(text).get("at", 0.0) if text else 0.0
        return _parse(text), generation, time.time() - at

    def write(self, me: Owner, seen: Any) -> bool:
        self._generation = write_generation(self.path, _text(me), seen)
        return self._generation > 0

    def is_dead(self, owner: Owner) -> bool:
        return _is_gone(owner)

    def is_alive(self, owner: Owner) -> bool:
        return _is_here(owner)

    def beat(self, me: Owner) -> Owner | None:
        if generation := write_generation(self.path, _text(me), self._generation):
            self._generation = generation
            return None
        other, generation, _ = self.read()
        if other is not None and other.id != me.id:
            return other
        self._generation = generation  # that of a request that was repeated, or 0 where the object was removed
        return None

    def standing(self) -> Owner | None:
        owner, _, age = self.read()
        return owner if owner and not _is_gone(owner) and age < _STALE_SECONDS else None

    def leave(self) -> None:
        """Nothing was written."""

    def release(self, me: Owner) -> None:
        delete_generation(self.path, self._generation)


def _names(path: Path, fd: int) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _text(owner: Owner) -> bytes:
    return json.dumps(owner._asdict() | {"at": time.time()}, indent=1).encode()


def _parse(text: bytes) -> Owner | None:
    """The owner; None for no text, or one that is being written."""
    try:
        found = json.loads(text)
        return Owner(**{name: found[name] for name in Owner._fields})
    except (ValueError, KeyError, TypeError):
        return None


def _this_process() -> Owner:
    program = Path(sys.argv[0])
    name = f"mtjudge {program.parent.name}" if program.name == "__main__.py" else program.name
    command = f"{name} {shlex.join(sys.argv[1:])}".strip()
    job = next((os.environ[name] for name in _JOBS if os.environ.get(name)), "")
    job = f"{job} {os.environ.get('SLURM_RESTART_COUNT', '')}".strip()
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return Owner(secrets.token_hex(8), platform.node(), pid, _began(pid), _system(), _space(), since, command[:300], job)


def _system() -> str:
    """One start of one operating system; the same in its containers."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


def _space() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _began(pid: int) -> str:
    """When a process began, "" if there is none (or it has ended and waits for its parent)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return ""
        try:  # not Linux
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
        return "running"
    return "" if state in "ZX" else fields[18]


def _is_gone(owner: Owner) -> bool:
    """Whether the owner is known to have ended, as only the same system can know."""
    return _same_space(owner) and _began(owner.pid) != owner.began


def _is_here(owner: Owner) -> bool:
    return _same_space(owner) and _began(owner.pid) == owner.began


def _same_space(owner: Owner) -> bool:
    return (owner.system, owner.space) == (_system(), _space())


_UNKNOWN = Owner("", "an unknown host", 0, "", "", "", "just now", "another command", "")
