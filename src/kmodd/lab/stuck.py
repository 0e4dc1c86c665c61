"""In a guest: what each process waits for, told when something in it takes too long."""

import contextlib
import os
from collections.abc import Iterator

from kmodd.kernel import stacks

LONGEST = 12_000
"""Characters that are told at the most."""
_OF_EACH = 8
_FRAMES = 12


def report(proc: str = "/proc") -> str:
    """Return what the tasks of all processes do in the kernel, innermost function first; root's to call.

    Kernel threads are left out, but for those that start a helper or load a module.
    """
    text = "\n".join(_tasks(proc))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… {len(text) - LONGEST} more characters"


def _tasks(proc: str) -> Iterator[str]:
    for pid in sorted(filter(str.isdigit, os.listdir(proc)), key=int):
        if int(pid) == os.getpid():
            continue
        # A task may end while it is looked at.
        with contextlib.suppress(OSError, ValueError):
            command = _read(f"{proc}/{pid}/cmdline").replace("\0", " ").strip()
            tids = sorted(os.listdir(f"{proc}/{pid}/task"), key=int)
            for tid in tids[:_OF_EACH]:
                yield from _task(f"{proc}/{pid}/task/{tid}", pid, command)
            if len(tids) > _OF_EACH:
                yield f"{pid}: {len(tids) - _OF_EACH} more threads"


def _task(task: str, pid: str, command: str) -> Iterator[str]:
    frames = [function for function, _module in stacks.frames(_read(f"{task}/stack"))[:_FRAMES]]
    if not command and not any("usermodehelper" in frame or "module" in frame for frame in frames):
        return
    state, _session = stacks.state_and_session(_read(f"{task}/stat"))
    name = _read(f"{task}/comm").strip()
    # A line each, whatever the name or the command is.
    yield f"{pid}/{os.path.basename(task)} {name!a} {state} {command[:120]!a}: {' < '.join(frames)}"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(65536)
