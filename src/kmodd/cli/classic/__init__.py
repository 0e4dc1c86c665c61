"""The classic tools: kmod's own options, output, messages and exit statuses, without a daemon."""

from __future__ import annotations


def run(tool: str, argv: list[str]) -> int:
    """Run `TOOL ARGV`, one of `parser.TOOLS`; return its exit status."""
    from importlib import import_module  # noqa: PLC0415 - Python has it; a tool imports what it needs

    status: int = import_module(f"kmodd.cli.classic.{tool}").main(argv, tool)
    return status
