"""Who is blocked waiting for a module, read from the kernel stacks of tasks.

Needs CONFIG_STACKTRACE and CAP_SYS_ADMIN in the initial user namespace (/proc/PID/stack, proc(5)).
A requester waits in `call_usermodehelper_exec`, killable, below `__request_module`. On User-mode Linux
/proc/PID/wchan names an unrelated function, while the stack is right (tried on 6.1), so the stack it is.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Collection, Iterator

from kmodd.kernel.interface import BlockedTask, Wait

_FRAME = re.compile(r"^\[<[0-9a-f]+>\] ([\w.]+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(\w+)\])?", re.MULTILINE)
# Both: one that still waits for one of the kernel's 50 slots has asked nobody yet.
_REQUESTING = frozenset({"__request_module", "call_usermodehelper_exec"})
# Where finit_module(2) sleeps until another task has brought a module in, kernels 5.3 to 6.12; load_module
# where the compiler has put the first of them into it. Only as the innermost function: below a read of the
# module's file the same functions stand, and that ends by itself.
_AWAITING = frozenset(
    {
        "add_unformed_module",
        "module_patient_check_exists",
        "load_module",
        "resolve_symbol_wait",
        "simplify_symbols",
        "idempotent",
        "idempotent_init_module",
        "idempotent_wait_for_completion",
    }
)
_WAITS = frozenset(
    {
        "wait_for_completion",
        "wait_for_completion_interruptible",
        "wait_for_completion_killable",
        "wait_for_completion_state",
        "__wait_for_common",
        "wait_for_common",
    }
)
_BLOCKED_STATES = frozenset("DS")
_ONE_THREAD = 3
"""The links of /proc/PID/task: 2, and one for each thread (fs/proc/base.c, proc_task_getattr())."""


def frames(stack: str) -> list[tuple[str, str | None]]:
    """Return the functions of a stack, innermost first, each with the module it belongs to or None."""
    return [(match[1], match[2] or None) for match in _FRAME.finditer(stack)]


def waiting_for(stack: str) -> Wait | None:
    """Return what a task with this kernel stack waits for."""
    functions = [function for function, _module in frames(stack)]
    if _REQUESTING.issubset(functions):
        return Wait.REQUEST
    innermost = next((function for function in functions if function not in _WAITS), None)
    return Wait.MODULE if innermost in _AWAITING else None


def state_and_session(stat: str) -> tuple[str, int]:
    """Return a task's state letter and session id from its stat file (proc(5)).

    The second field is the task's name in parentheses and may hold anything, so the last `)` counts.
    """
    fields = stat[stat.rindex(")") + 2 :].split(" ", 4)
    return fields[0], int(fields[3])


def session_of(tid: int, proc: str = "/proc") -> int | None:
    """Return the session id of a task; None where it has ended."""
    try:
        return state_and_session(_read(f"{proc}/{tid}/stat"))[1]
    except (OSError, ValueError):
        return None


def blocked_tasks(
    sessions: Collection[int], coming: Collection[str], proc: str = "/proc", threads: Collection[int] = ()
) -> list[BlockedTask]:
    """Return every task blocked in request_module(), and of those that load who waits for a module.

    Those that load: the tasks of `sessions`, and `threads`.
    A task that ends while it is looked at is left out.
    """
    found = []
    for task in _tasks(proc):
        try:
            state, session = state_and_session(_read(f"{task}/stat"))
            # Only a load's own tasks can wait for a module (interruptible); a requester is in D.
            tid = int(task.rpartition("/")[2])
            loads = session in sessions or tid in threads
            if state not in _BLOCKED_STATES or (state == "S" and not loads):
                continue
            stack = _read(f"{task}/stack")
        except (OSError, ValueError):
            continue
        wait = waiting_for(stack)
        if wait is Wait.REQUEST:
            modules = frozenset(module for _function, module in frames(stack) if module)
        elif wait is Wait.MODULE and loads:
            modules = frozenset(coming)
        else:
            continue
        found.append(BlockedTask(tid, session, wait, modules))
    return found


ASKS = b"call_usermodehelper_exec"
"""The wchan of a task that waits for its helper."""


def may_read(wchan: bytes, proc: str = "/proc") -> bool:
    """Whether a task's stack may be read on the event loop: it waits for a helper.

    To read the stack of a task that is executing a program waits until that is done, and a user can make that
    take for ever: exec closes files meanwhile, and one of them may be of a file system of his own
    (lock_trace() in fs/proc/base.c). Its wchan takes no lock. On User-mode Linux that names another function.
    """
    return wchan == ASKS or user_mode(proc)


@functools.cache
def user_mode(proc: str = "/proc") -> bool:
    """Whether this is User-mode Linux, by its cpuinfo file."""
    try:
        return "User Mode Linux" in _read(f"{proc}/cpuinfo")
    except OSError:
        return False


def requesting(proc: str = "/proc", deadline: float | None = None) -> list[int] | None:
    """Return the thread ids of all tasks that are blocked in request_module().

    None where that has not been found out by `deadline`, a time of the monotonic clock in seconds.
    """
    found = []
    for task in _tasks(proc):
        if deadline is not None and time.monotonic() > deadline:
            return None
        try:
            blocked = state_and_session(_read(f"{task}/stat"))[0] == "D"
            blocked = blocked and may_read(_read(f"{task}/wchan").encode(), proc)
            if blocked and waiting_for(_read(f"{task}/stack")) is Wait.REQUEST:
                found.append(int(task.rpartition("/")[2]))
        except (OSError, ValueError):
            continue
    return found


def _tasks(proc: str) -> Iterator[str]:
    for pid in os.listdir(proc):
        if pid.isdigit():
            folder = f"{proc}/{pid}/task"
            try:
                # Most have one thread, and to list it takes as long as all that is read of it.
                one = os.stat(folder).st_nlink == _ONE_THREAD
                tids = [pid] if one else os.listdir(folder)
            except OSError:
                continue
            for tid in tids:
                yield f"{folder}/{tid}"


def _read(path: str) -> str:
    """Read a file of /proc, with a system call each: every task of the machine is looked at."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode("ascii", "replace")
    finally:
        os.close(fd)
