"""The classic tools, run in this process: hundreds of runs cost what a few starts of Python would."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from unittest import mock

Done = tuple[int, bytes, bytes]
"""Exit status, standard output, standard error."""


def ours(tool: str, arguments: list[str]) -> Done:
    """Run one of our tools in this process.

    What modprobe adds to its environment, for the commands that it runs, ends with it: each run would
    find twice the options of the one before.
    """
    main = importlib.import_module(f"kmodd.cli.classic.{tool}").main
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ):
        status = main(arguments, tool)
        out.flush()
        err.flush()
    return status, out.buffer.getvalue(), err.buffer.getvalue()  # type: ignore[attr-defined]
