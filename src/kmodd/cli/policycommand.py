"""`kmodd policy deny`, `allow` and `forget`: one rule by one command, in force at once."""

from __future__ import annotations

import fcntl
import os
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime

from kmodd.cli.policy import ask
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotFound, Unreachable, UsageError
from kmodd.names import check as check_name
from kmodd.policy import files
from kmodd.policy import groups as shipped
from kmodd.policy.commands import Command, as_text, changed, commands
from kmodd.policy.files import COMMANDS
from kmodd.policy.parse import parse
from kmodd.policy.patterns import Globs
from kmodd.policy.rules import Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


def deny(arguments: Namespace) -> int:
    """Deny modules at once; requests in flight that have not loaded them yet are denied, too."""
    until = _day(arguments.until)
    patterns = [_pattern(word) for word in arguments.what]
    for pattern in patterns:
        _command(arguments, Command(pattern, Action.DENY, arguments.reason, until), None)
        _tell_of(pattern, unload=arguments.unload)
    return 0


def allow(arguments: Namespace) -> int:
    """Allow modules before all other rules."""
    until = _day(arguments.until)
    for pattern in [_pattern(word) for word in arguments.what]:
        _command(arguments, Command(pattern, Action.ALLOW, arguments.reason, until), None)
        print(f"{pattern}: allowed")
    return 0


def forget(arguments: Namespace) -> int:
    """Take back what `deny` or `allow` said of modules."""
    for pattern in [_pattern(word) for word in arguments.what]:
        _command(arguments, None, pattern)
        print(f"{pattern}: no longer denied or allowed by command")
    return 0


def _pattern(word: str) -> str:
    name = check_name(os.fsencode(word))
    if name.startswith("@") and name[1:] not in shipped.load():
        raise UsageError(f"there is no group {name}: see kmodd policy groups")
    return name


def _day(text: str | None) -> date | datetime | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until takes a day, as in 2027-01-31, not {text[:64]!r}") from None


def _command(arguments: Namespace, command: Command | None, forgotten: str | None) -> None:
    """Change the file of commands, and have the daemon take it; where it does not, all is as it was."""
    directory, reachable = _place(runtime=arguments.runtime)
    path = os.path.join(directory, COMMANDS)
    with _alone(directory):
        before, had = _commands(path)
        left = changed(had, command, forgotten)
        if command is None and left == had:
            raise NotFound(f"no command denies or allows {forgotten} in {path}")
        # Before it is written: a daemon that is not running would not start with a file that it cannot take.
        parse(as_text(left), COMMANDS, files.names(ask=False))
        _put(path, as_text(left) if left else None)
        if not reachable:
            print(f"kmodd: the daemon is not running; {path} counts from its start on", file=sys.stderr)
            return
        try:
            Connection().call("ReloadPolicy")
        except Reply as reply:
            _put(path, before)
            raise reply.as_error() from None


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Have nobody else change the file of commands meanwhile: two denials at once are both to hold."""
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise KmoddError(f"cannot write below {directory}: {err.strerror}") from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _commands(path: str) -> tuple[str | None, list[Command]]:
    """Return the file of commands, as it is and as commands; None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return text, commands(text)
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError, KeyError, TypeError, tomllib.TOMLDecodeError) as err:
        raise KmoddError(f"cannot change {path}: {err}; correct it or remove it") from err


def _put(path: str, text: str | None) -> None:
    if text is not None:
        write(path, text)
        return
    with suppress(FileNotFoundError):
        os.unlink(path)


def _place(*, runtime: bool) -> tuple[str, bool]:
    """Return where files of commands go, and whether a daemon said so."""
    try:
        told = ask("GetPolicy", "policy")
    except Unreachable:
        return files.place("/", runtime=runtime), False
    return str(told["runtime_directory" if runtime else "directory"]), True


def write(path: str, text: str) -> None:
    """Write a policy file.

    Raises:
        KmoddError: it cannot be written; what was there is left.
    """
    try:
        files.write(path, text)
    except OSError as err:
        more = "; --runtime writes below /run" if err.errno == 30 else ""
        raise KmoddError(f"cannot write {path}: {err.strerror}{more}") from err


def _tell_of(pattern: str, *, unload: bool) -> None:
    """Say what a denial does not reach: what is in the kernel already."""
    print(f"{pattern}: denied")
    group = shipped.load().get(pattern[1:]) if pattern.startswith("@") else None
    globs = Globs.of(group.patterns if group is not None else [pattern], names=True)
    try:
        live = [module["name"] for module in ask("ListModules", "modules") if globs.matches(module["name"])]
    except Unreachable:
        return
    for name in live:
        if not unload:
            print(f"kmodd: {name} is in the kernel already: --unload unloads it", file=sys.stderr)
            continue
        try:
            Connection().call("RemoveModule", name=name)
            print(f"{name}: unloaded")
        except Reply as reply:
            print(f"kmodd: {reply.as_error()}", file=sys.stderr)
