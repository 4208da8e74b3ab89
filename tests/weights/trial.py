"""Hand an input to a reader in a forked child, and see what comes of it."""

import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants

from pcd_hub.errors import PCDHubError

MAX_SECONDS = 10.0
MAX_BYTES = 2 * 1024**3
PATIENCE_SECONDS = 60.0
_EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod")
_CHANGING += ("os.truncate", "os.utime", "os.chown", "shutil.copyfile", "shutil.move")
_THEIRS = {"store", "tmp", "hub", "cache"}
"""Beside the input: where a reader may write."""

Read = Callable[[], object]


class Case(NamedTuple):
    name: str
    prepare: Callable[[Path], Read]
    """Put the input into a folder of its own, unobserved; return what reads it."""
    reason: str
    """What the refusal must say; nothing if the input may also be read as if it were harmless."""


class Outcome(NamedTuple):
    name: str
    verdict: str
    """``read``, ``refused``, or what went wrong."""
    message: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    grown: int = 0
    """Most bytes of memory beyond the most before."""
    executed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    """What was written, changed or removed where a reader has no business."""

    @property
    def is_harmless(self) -> bool:
        return (
            self.verdict in {"read", "refused"}
            and not self.executed
            and not self.outside
            and self.cpu_seconds <= MAX_SECONDS
            and self.grown <= MAX_BYTES
        )


def tried(cases: Sequence[Case], root: Path) -> Iterator[Outcome]:
    """What each case does. A child does them in turn; it is killed if one goes much too far."""
    context = multiprocessing.get_context("fork")
    rest = list(cases)
    while rest:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(rest, root / "place", sender))
        child.start()
        sender.close()
        while rest and (child.is_alive() or receiver.poll()):
            outcome = _awaited(rest[0].name, child, receiver)
            yield outcome
            rest = rest[1:]
            if outcome.verdict in {"killed", "died"}:
                break
        child.join()


def _awaited(name: str, child: Any, receiver: Connection) -> Outcome:
    start, before, most = time.monotonic(), _resident(child.pid), 0
    while not receiver.poll(0.02):
        seconds, most = time.monotonic() - start, max(most, _resident(child.pid) - before)
        if most > MAX_BYTES * 1.2 or seconds > PATIENCE_SECONDS:
            child.kill()
            return Outcome(name, "killed", seconds=seconds, grown=most)
    try:
        return Outcome(**json.loads(receiver.recv_bytes()))
    except EOFError:
        return Outcome(name, "died")


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):  # it has just ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _child(cases: Sequence[Case], place: Path, sender: Connection) -> None:
    executed: list[str] = []
    elsewhere: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EXECUTING:
            executed.append(event)
        elsewhere.extend(_written(event, arguments, place))

    sys.addaudithook(note)
    for case in cases:
        _settle_in(place)
        try:
            outcome = _read(case, place, executed, elsewhere)
        except BaseException:
            outcome = Outcome(case.name, "was not prepared", traceback.format_exc())
        sender.send_bytes(json.dumps(outcome._asdict()).encode())
    sender.close()
    os._exit(0)  # threads of a client may still wait


def _settle_in(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    for name in ("cwd", "home", *_THEIRS):
        (place / name).mkdir(parents=True)
    os.chdir(place / "cwd")
    os.environ |= {"HOME": f"{place}/home", "TMPDIR": f"{place}/tmp", "TEMP": f"{place}/tmp"}
    os.environ["PCD_HUB_HOME"] = str(place / "store")
    huggingface_hub.constants.HF_HUB_CACHE = str(place / "cache")
    with (place / "tmp" / "stderr").open("w") as quiet:
        os.dup2(quiet.fileno(), 2)


def _written(event: str, arguments: tuple[Any, ...], place: Path) -> list[str]:
    """What an event of the interpreter writes or changes that does not lie below ``place``."""
    if event == "open":
        path, mode, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        changes = bool(set(mode or "") & set("wax+") or (flags or 0) & writes)
        paths = [path] if changes else []
    else:
        paths = [*arguments[:2]] if event in _CHANGING else []
    named = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    return [
        path
        for path in map(os.path.abspath, named)
        if path != os.devnull and not path.startswith(f"{place}{os.sep}")
    ]


def _read(case: Case, place: Path, executed: list[str], elsewhere: list[str]) -> Outcome:
    read = case.prepare(place)
    _forget_peak()
    before, memory = _surroundings(place), _peak()
    executed.clear()
    elsewhere.clear()
    start, cpu = time.monotonic(), time.process_time()
    verdict, message = "read", ""
    try:
        read()
    except PCDHubError as error:
        verdict, message = "refused", str(error)
    except BaseException as error:
        verdict, message = f"raised {type(error).__name__}", traceback.format_exc()[-2000:]
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    grown, after = _peak() - memory, _surroundings(place)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    outside = sorted(changed | {*elsewhere})
    return Outcome(
        case.name, verdict, message, seconds, cpu, grown, tuple(executed), tuple(outside)
    )


def _forget_peak() -> None:
    """Or an input that stays below what came before it would count as nothing."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes at the most since it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _surroundings(place: Path) -> dict[str, tuple[int, ...]]:
    """Everything beside the input and below it, but where a reader may write."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.relative_to(place).parts[0] not in _THEIRS:
            facts = path.lstat()
            changed = 0 if path.is_dir() else facts.st_mtime_ns
            found[str(path.relative_to(place))] = (facts.st_mode, facts.st_size, changed)
    return found
