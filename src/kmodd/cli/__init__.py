"""The command line. Client commands import nothing heavy, so that they start fast."""

from __future__ import annotations

import io
import os
import sys

from kmodd.cli import parser
from kmodd.errors import KmoddError


def main(argv: list[str] | None = None) -> int:
    """Run `kmodd ARGV`; return its exit status: that of the table in kmodd(8), or the classic tool's own."""
    if sys.stdout is None:  # closed by whoever started it: what is printed goes nowhere
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open to the end
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A module's path may have bytes that no terminal has characters for.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        try:
            status = _run(sys.argv if argv is None else ["kmodd", *argv])
        finally:
            sys.stdout.flush()
    except KmoddError as err:
        print(f"kmodd: {err}", file=sys.stderr)
        return err.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _give_up_output()
        return status
    except OSError as err:
        _give_up_output()
        print(f"kmodd: cannot write the output: {err.strerror}", file=sys.stderr)
        return 1
    return status


def _run(words: list[str]) -> int:
    """Run a command, or the classic tool that kmodd is called by the name of, through a link."""
    called = os.path.basename(words[0])
    tool, argv = (called, words[1:]) if called in parser.TOOLS else ("".join(words[1:2]), words[2:])
    if tool not in parser.TOOLS:
        return parser.run(parser.parse(words[1:]))
    from kmodd.cli import classic  # noqa: PLC0415 - no command of ours needs it

    return classic.run(tool, argv)


def _give_up_output() -> None:
    """Let what Python still holds go nowhere, or it would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
