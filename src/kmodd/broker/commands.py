"""An `install` or `remove` command of modprobe.d, run as modprobe runs it."""

from __future__ import annotations

from collections.abc import Callable

from kmodd.broker import child
from kmodd.broker.child import Ended
from kmodd.names import printable

_SHELL = "/bin/sh"


def run(command: str, module: str, options: str, started: Callable[[int], None]) -> Ended:
    """Run a module's command by the shell to its end, in the calling thread and its root; see `child.run`.

    It finds the module's name in MODPROBE_MODULE. `options` stands in for $CMDLINE_OPTS: the module's
    parameters for `install`, nothing for `remove`.

    Raises:
        OSError: there is no shell, or it cannot be started.
    """
    environment = {**child.ENVIRONMENT, "MODPROBE_MODULE": module}
    return child.run(_SHELL, ["sh", "-c", command.replace("$CMDLINE_OPTS", options)], started, environment)


def status(ended: Ended) -> int:
    """Return a command's status as a shell tells it: 128 and the signal's number where one ended it."""
    return ended.status if ended.status >= 0 else 128 - ended.status


def words(ended: Ended) -> str:
    """Return how a command that failed has ended, and what it said, as one line that is safe to show."""
    how = f"ended with exit status {ended.status}"
    if ended.status < 0:
        how = f"was killed by signal {-ended.status}"
    said = printable(ended.output)
    return f"{how}: {said}" if said else how
