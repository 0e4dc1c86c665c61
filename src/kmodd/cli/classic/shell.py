"""`install` and `remove` commands of modprobe.d, run as modprobe runs them."""

from __future__ import annotations

import os


def run(command: str, module: str, options: str) -> int:
    """Run an `install` or `remove` command by the shell; return its exit status, 0 where a signal ended it.

    That a killed command counts as done is kmod's rule.
    """
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", command.replace("$CMDLINE_OPTS", options)],
        {**os.environ, "MODPROBE_MODULE": module},
        setsigdef=[13],  # SIGPIPE, which Python ignores
    )
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status)
