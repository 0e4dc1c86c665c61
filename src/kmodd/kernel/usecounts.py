"""How often each module was got, counted in the kernel: what uses it between two looks at its refcount.

A hist trigger (since Linux 4.7) on module:module_get in a tracefs instance of our own: a table of names and
numbers, and no stream of events. A trigger alone makes the kernel call it; the event need not be enabled and
nothing is written to the instance's buffer. module:module_put tells nothing beyond it, and is not counted.
To open and close a device of a module costs about 5% more with it than without (QEMU, Linux 6.1).

What counts, as measured on Linux 6.1 and 6.12:

- try_module_get() and __module_get() that succeed: a device, socket, mount or algorithm that is opened.
  What takes no reference is not seen: /proc files, a network interface that is made or goes up.
- Loading a module is no get of itself, although its init holds it; but of each module that it needs symbols
  of, one. Some get themselves in their init: sctp twice, an algorithm that is tested as it is registered.
- delete_module(), done or refused, gets nothing; the modules that it needed are put. Nor does a second
  modprobe of a live one, nor any read of /proc/modules, /proc/crypto, /sys/module, mountinfo or `ip link`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re

from kmodd.errors import KmoddError
from kmodd.kernel.instance import TRACEFS, problem_with, read, why, write

log = logging.getLogger(__name__)

NAME = "kmodd-uses"
SIZE = 1024
"""How many different modules are counted: the table takes 0.4 MB. Beyond that nothing can be told."""

_EVENT = "events/module/module_get"
_TRIGGER = f"hist:keys=name:size={SIZE}"
_SHOWN = f"hist:keys=name:vals=hitcount:sort=hitcount:size={SIZE} [active]\n"
_HEAD = f"# event histogram\n#\n# trigger info: {_SHOWN}#\n\n"
# hist_trigger_print_key() in kernel/trace/trace_events_hist.c. A name that holds a space or a line end, which
# only root could install, might show a count of another's: it spoils the table.
_LINE = re.compile(r"\{ name: ([!-~]{1,63}) +\} hitcount: +([0-9]{1,20})")
_FOOT = re.compile(r"\nTotals:\n    Hits: [0-9]+\n    Entries: ([0-9]+)\n    Dropped: ([0-9]+)\n")
_FOOT_LINES = 6
_TABLE_MAX = SIZE * 128 + 4096


class UseCounts:
    """Counts, in the kernel; without the right, or without such triggers, `problem` says why there are none.

    All of it may block: call it from a thread. The instance outlives a daemon that is killed, and the next
    goes on with its counts.
    """

    def __init__(self, roots: tuple[str, ...] = TRACEFS) -> None:
        self._roots = roots
        self._directory: str | None = None
        self.problem: str | None = "not started"

    @property
    def on(self) -> bool:
        """Whether gets are counted."""
        return self.problem is None

    def start(self) -> None:
        """Count from now on, or go on with what a dead daemon has begun."""
        problem = problem_with(self._start)
        if problem is not None:
            self.stop()
        self.problem = problem

    def _start(self) -> None:
        root = next((root for root in self._roots if os.path.isdir(f"{root}/instances")), None)
        if root is None:
            raise KmoddError(f"tracefs is not mounted at {self._roots[0]}")
        if not os.path.isdir(f"{root}/{_EVENT}"):
            raise KmoddError("this kernel does not have the trace event module:module_get")
        if not os.path.exists(f"{root}/{_EVENT}/hist"):
            raise KmoddError("this kernel does not have hist triggers")
        directory = f"{root}/instances/{NAME}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        self._directory = directory
        # Nothing is recorded in it: the least there can be, for each processor.
        write(f"{directory}/buffer_size_kb", "1")
        if read(f"{directory}/{_EVENT}/trigger") != _SHOWN:
            self._begin_anew()

    def _begin_anew(self) -> None:
        # Opened to be truncated, it loses all triggers that it has.
        write(f"{self._directory}/{_EVENT}/trigger", _TRIGGER, os.O_TRUNC)

    def stop(self) -> None:
        """Remove the instance, and the counts with it."""
        if self.on:
            self.problem = "stopped"
        directory, self._directory = self._directory, None
        if directory is None:
            return
        try:
            os.rmdir(directory)  # its trigger goes with it
        except OSError as err:
            log.warning("cannot remove %s: %s", directory, err.strerror)

    def counts(self) -> dict[str, int] | None:
        """Return how often each module has been got since the counting began; one that is not there, never.

        None: nobody can tell, for counting is not on, or more than `SIZE` modules have been got, or another
        has changed the table. It begins anew then: what is told later is not to be compared with what was
        told before.
        """
        if not self.on:
            return None
        try:
            found = parse(read(f"{self._directory}/{_EVENT}/hist", _TABLE_MAX))
            if found is None:
                self._begin_anew()
        except OSError as err:
            if err.errno in {errno.ENOENT, errno.ENODEV}:
                # Somebody has removed the instance.
                self._directory = None
                self.problem = why(err)
            return None
        return found


def parse(text: str) -> dict[str, int] | None:
    """Return the counts of a hist file; None where it is not wholly what the kernel shows of ours."""
    if not text.startswith(_HEAD):
        return None
    lines = text[len(_HEAD) :].split("\n")
    foot = _FOOT.fullmatch("\n".join(lines[-_FOOT_LINES:]))
    if foot is None or int(foot[2]):
        return None
    lines = lines[:-_FOOT_LINES]
    found = {line[1]: int(line[2]) for line in map(_LINE.fullmatch, lines) if line is not None}
    # As many as the kernel has entries: a name that makes two lines of one is found out.
    return found if len(found) == len(lines) == int(foot[1]) else None
