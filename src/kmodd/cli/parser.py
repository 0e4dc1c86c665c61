"""What the command line takes. Each command's code is imported when it runs, not before."""

from __future__ import annotations

import os
import sys

from kmodd import __version__
from kmodd.cli.quick import Quick

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Taker = argparse.ArgumentParser | Quick
    Fill = Callable[[Taker], None]

POLICY_ACTIONS = (
    "show", "check", "lint", "reload", "mode", "deny", "allow", "forget", "learn", "groups", "preset",
    "export",
)  # fmt: skip
"""What `kmodd policy` does."""
SOURCES = ("kernel", "api", "cli", "uevent", "boot")
"""`model.Source`, without importing what a client does not need."""


def _wrong(message: str) -> Exception:
    """Return what argparse tells a user as it is."""
    from argparse import ArgumentTypeError  # noqa: PLC0415 - most words are read without it

    return ArgumentTypeError(message)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise _wrong(f"{text} is not a number of seconds from 0 on")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if value < 0:
        raise _wrong(f"{text} is not a number from 0 on")
    return value


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise _wrong(f"{text} is not a number from 1 on")
    return value


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return argparse's own with a width: to find one it imports shutil, for each argument that is added."""
    import argparse  # noqa: PLC0415 - most words are read without it

    columns = os.environ.get("COLUMNS", "")
    return argparse.HelpFormatter(prog, width=(int(columns) if columns.isdecimal() else 80) - 2)


def _json(made: Taker) -> None:
    made.add_argument("--json", action="store_true", help="print JSON")


def _serve(made: Taker) -> None:
    made.add_argument("--hook", action="store_true", help="make the kernel send its requests; undone on exit")
    made.add_argument(
        "--kernel", choices=("linux", "simulated"), default="linux", help="which kernel to load in"
    )
    made.add_argument("--root", default="/", metavar="DIR", help="where etc, run and var are found")


def _request(made: Taker) -> None:
    _json(made)
    made.add_argument("name", nargs="+", metavar="NAME", help="a module's name or an alias")
    made.add_argument(
        "--timeout", type=_seconds, metavar="S", help="wait at most S seconds; the load goes on"
    )
    made.add_argument("--no-wait", action="store_true", help="ask and return at once")


def _remove(made: Taker) -> None:
    _json(made)
    made.add_argument("name", nargs="+", metavar="NAME", help="a module's name")
    made.add_argument("--holders", action="store_true", help="unload those first that use it")


def _autoclean(made: Taker) -> None:
    _json(made)
    made.add_argument(
        "--dry-run", action="store_true", help="only show it, which is what it does without --now"
    )
    made.add_argument("--now", action="store_true", help="unload now what may go, and show that")


def _resolve(made: Taker) -> None:
    _json(made)
    made.add_argument("name", nargs="+", metavar="NAME", help="a module's name or an alias")
    made.add_argument("--release", metavar="R", help="for another kernel release than the running one")
    made.add_argument("--tree", metavar="DIR", help="in a root directory or a modules directory")
    made.add_argument(
        "--kmod-exact", action="store_true", help="as kmod does it, where kmodd differs on purpose"
    )


def _tune(made: Taker) -> None:
    _json(made)
    made.add_argument("setting", nargs="*", metavar="KEY[=VALUE]", help="a setting to show or to change")


def _hook(made: Taker) -> None:
    _json(made)
    made.add_argument("action", choices=("on", "off", "status"), help="what to do")


def _log(made: Taker) -> None:
    _json(made)
    made.add_argument("-f", "--follow", action="store_true", help="go on with what happens next")
    made.add_argument("--since", metavar="T", help="from then on: 2026-11-23T08:00:00Z, or 90s for 90 s ago")
    made.add_argument(
        "--module", metavar="M", help="what loaded or unloaded a module, or was denied it (a glob)"
    )
    made.add_argument("--name", metavar="N", help="what asked for a name (a glob)")
    made.add_argument("--outcome", metavar="O", help="what ended so: loaded, not-found, failed ...")
    made.add_argument("--uid", type=_count, metavar="U", help="what a user asked for")
    made.add_argument("-n", "--lines", type=_count, metavar="N", help="the newest N only")


def _why(made: Taker) -> None:
    _json(made)
    made.add_argument("module", nargs="+", metavar="MODULE", help="a module's name")


def _policy(made: Taker) -> None:
    _json(made)
    made.add_argument("action", choices=POLICY_ACTIONS, help="what to do")
    made.add_argument("what", nargs="*", metavar="WHAT", help="a name, a module, a mode, a preset")
    made.add_argument("--uid", type=_count, metavar="U", help="check: by this user id")
    made.add_argument("--gid", type=_count, metavar="G", help="check: by this group id")
    made.add_argument("--user", metavar="USER", help="check: by this user, with all of his groups")
    made.add_argument("--exe", metavar="PATH", help="check: by this program")
    made.add_argument("--unit", metavar="UNIT", help="check: by this systemd unit")
    made.add_argument("--container", metavar="ID", help="check: from this container")
    made.add_argument("--privileged", action="store_true", help="check: with CAP_SYS_MODULE or CAP_SYS_ADMIN")
    made.add_argument(
        "--unprivileged", action="store_true", help="check: without them, as root in a container"
    )
    made.add_argument("--call-site", metavar="FUNCTION", help="check: by this function of the kernel")
    made.add_argument("--source", choices=SOURCES, help="check: from there; the kernel without")
    made.add_argument("--unknown", action="store_true", help="check: by somebody who is not known")
    made.add_argument("--root", metavar="DIR", help="the policy below DIR, without a daemon")
    made.add_argument("--since", metavar="T", help="learn: from then on, as in kmodd log")
    made.add_argument("--diff", action="store_true", help="learn: show what would change")
    made.add_argument("--write", action="store_true", help="learn: put it in force")
    made.add_argument("--reason", metavar="TEXT", help="deny, allow: why")
    made.add_argument("--until", metavar="DATE", help="deny, allow: to the end of that day")
    made.add_argument("--unload", action="store_true", help="deny: unload it, too, where nothing uses it")
    made.add_argument("--runtime", action="store_true", help="deny, allow, forget: until the next boot")
    made.add_argument("--modprobe-d", action="store_true", help="export: as a file for modprobe.d")


def _seal(made: Taker) -> None:
    made.add_argument("--hard", action="store_true", help="no module at all until the next boot")
    made.add_argument("--yes", action="store_true", help="do not ask")


def _exposure(made: Taker) -> None:
    _json(made)
    made.add_argument("--root", metavar="DIR", help="the policy below DIR, without a daemon")
    made.add_argument("--list", action="store_true", help="name the modules")


def _nothing(_made: Taker) -> None:
    pass


def _lab(made: Taker) -> None:
    made.add_argument("--kernel", choices=("uml", "qemu"), default="uml", help="User-mode Linux, or QEMU")
    made.add_argument("--smp", type=_positive, default=1, metavar="N", help="processors (QEMU)")
    made.add_argument("--memory", type=_positive, metavar="MIB", help="memory in MiB")
    made.add_argument("--timeout", type=_seconds, metavar="S", help="end the kernel after S seconds")
    made.add_argument("--release", metavar="R", help="which of several kernels (QEMU)")
    made.add_argument(
        "--no-serve", action="store_true", help="leave kernel.modprobe as it is, start no daemon"
    )
    made.add_argument("argv", nargs="...", metavar="[--] CMD", help="what to run; a shell without")


def _completion(made: Taker) -> None:
    made.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


COMMANDS: dict[str, tuple[str, str, Fill]] = {
    "serve": ("run the daemon in the foreground", "serve:serve", _serve),
    "request": ("ask for modules by name or alias", "client:request", _request),
    "remove": ("unload modules", "client:remove", _remove),
    "list": ("list the modules in the kernel", "client:list_modules", _json),
    "autoclean": ("show what would be unloaded, what stays and why", "autoclean:autoclean", _autoclean),
    "resolve": ("show what a request would load, in order, and why", "resolve:resolve", _resolve),
    "status": ("show the daemon, the hook and counts", "client:status", _json),
    "tune": ("read or change settings of the running daemon", "client:tune", _tune),
    "hook": ("point the kernel at kmodd, or put back what was", "hook:hook", _hook),
    "log": ("show what happened", "client:log", _log),
    "why": ("tell what brought a module in", "client:why", _why),
    "policy": ("see, ask and change who may have which module", "policy:policy", _policy),
    "seal": ("let nothing new in but what the policy lists", "seal:seal", _seal),
    "unseal": ("end what seal has begun", "seal:unseal", _nothing),
    "exposure": ("count which modules could be had by whom", "exposure:exposure", _exposure),
    "lab": ("boot a disposable real kernel with kmodd in charge", "lab:lab", _lab),
    "completion": ("print a shell's completion script", "completion:completion", _completion),
}
"""For each command what it does, `MODULE:FUNCTION` below kmodd.cli that does it, and its arguments."""


TOOLS: dict[str, str] = {
    "modprobe": "insert or remove modules with what they need",
    "insmod": "insert the module in a file",
    "rmmod": "remove modules",
    "lsmod": "list the modules in the kernel",
    "modinfo": "show what modules say of themselves",
}
"""The classic tools, below kmodd.cli.classic, which take what kmod's take: see kmodd-tools(8)."""


def build() -> argparse.ArgumentParser:
    """Return the parser of `kmodd`, with every command."""
    import argparse  # noqa: PLC0415 - most words are read without it

    parser = argparse.ArgumentParser(
        prog="kmodd",
        description="The on-demand kernel-module loader.",
        allow_abbrev=False,
        formatter_class=_formatter,
        epilog=f"The classic tools are commands too, with the options of kmod's: {', '.join(TOOLS)}.",
    )
    parser.add_argument("--version", action="version", version=f"kmodd {__version__}")
    commands = parser.add_subparsers(
        # With prog given argparse formats no usage here, for which it would import shutil.
        prog="kmodd",
        dest="command",
        metavar="COMMAND",
        required=True,
    )
    for name, (summary, _run, fill) in COMMANDS.items():
        fill(
            commands.add_parser(
                name, help=summary, description=summary, allow_abbrev=False, formatter_class=_formatter
            )
        )
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return what `kmodd ARGV` asks for, the command's name as `command`.

    Plain words are read without argparse. Else, where the first word is a command, only that one's parser is
    made: all of them cost as much as Python.

    Raises:
        SystemExit: the words are off (2), or it was help that was asked for (0).
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in COMMANDS:
        return build().parse_args(words)
    summary, _run, fill = COMMANDS[words[0]]
    quick = Quick()
    fill(quick)
    if (plain := quick.read(words[0], words[1:])) is not None:
        return plain
    import argparse  # noqa: PLC0415 - most words are read without it

    parser = argparse.ArgumentParser(
        prog=f"kmodd {words[0]}", description=summary, allow_abbrev=False, formatter_class=_formatter
    )
    fill(parser)
    given = argparse.Namespace(command=words[0])
    if words[0] == "policy":
        # Its words and options may stand in any order: argparse else takes none behind the first option.
        return parser.parse_intermixed_args(words[1:], given)
    return parser.parse_args(words[1:], given)


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; return its exit status."""
    module, _, function = COMMANDS[arguments.command][1].partition(":")
    # A command imports what it needs, and the package importlib is more than most of them do.
    found = __import__(f"kmodd.cli.{module}", fromlist=[function])
    status: int = getattr(found, function)(arguments)
    return status
