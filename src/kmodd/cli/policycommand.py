"""`kmodd policy deny`, `allow` and `forget`: one rule by one command, in force at once."""

from __future__ import annotations

import fcntl
import os
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime

from kmodd.cli.policy import ask
from kmodd.cli.policydenial import Meaning, few, meaning, obstacle
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotFound, Unreachable, UsageError
from kmodd.names import check as check_name
from kmodd.policy import files
from kmodd.policy import groups as shipped
from kmodd.policy.commands import Command, as_text, changed, commands
from kmodd.policy.files import COMMANDS, RUNTIME_COMMANDS
from kmodd.policy.parse import parse
from kmodd.policy.patterns import plain
from kmodd.policy.rules import Action


def deny(arguments: Namespace) -> int:
    """Deny modules at once; requests in flight that have not loaded them yet are denied, too."""
    until = _day(arguments.until)
    status = 0
    for word in [_pattern(word) for word in arguments.what]:
        done = _deny(arguments, word, until)
        status = status or done
    return status


def _deny(arguments: Namespace, word: str, until: date | datetime | None) -> int:
    """Deny one, and say so only where the daemon does it."""
    meant = meaning(word)
    path, reachable = _command(arguments, word, _commands_for(arguments, meant, Action.DENY, until))
    if not reachable:
        _say(f"{word} is not denied yet: the daemon is not running; {path} counts from its start on")
        return Unreachable.exit_status
    status = 0
    why = obstacle(meant, os.path.basename(path))
    if why is not None:
        _say(f"the rule for {word} is in {path}, but does not deny it: {why}")
        status = 1
    elif meant.modules == () and not word.startswith("@"):
        _say(f"nothing installed has the name {word}: the rule in {path} counts once something has")
    else:
        print(f"{word}: denied")
        if meant.by_name and meant.modules:
            also = few(meant.modules)
            _say(
                f"{word} is an alias of {also}: requests by other names are not denied; "
                "`kmodd policy deny MODULE` denies a module by all of its names"
            )
    stays = _tell_of(meant, unload=arguments.unload, denied=why is None)
    return status or stays


def allow(arguments: Namespace) -> int:
    """Allow modules before all other rules."""
    until = _day(arguments.until)
    for word in [_pattern(word) for word in arguments.what]:
        path, reachable = _command(
            arguments, word, _commands_for(arguments, meaning(word), Action.ALLOW, until)
        )
        if not reachable:
            _say_not_running(path)
        print(f"{word}: allowed")
    return 0


def forget(arguments: Namespace) -> int:
    """Take back what `deny` or `allow` said of modules."""
    for word in [_pattern(word) for word in arguments.what]:
        path, reachable = _command(arguments, word, [])
        if not reachable:
            _say_not_running(path)
        print(f"{word}: no longer denied or allowed by command")
    return 0


def _say_not_running(path: str) -> None:
    _say(f"the daemon is not running; {path} counts from its start on")


def _say(message: str) -> None:
    """Tell something beside the outcome."""
    print(f"kmodd: {message}", file=sys.stderr)


def _commands_for(
    arguments: Namespace, meant: Meaning, action: Action, until: date | datetime | None
) -> list[Command]:
    return [Command(meant.word, action, arguments.reason, until, by_name) for by_name in meant.ways]


def _pattern(word: str) -> str:
    name = check_name(os.fsencode(word))
    if name.startswith("@") and name[1:] not in shipped.load():
        raise UsageError(f"there is no group {name}: see kmodd policy groups")
    return name


def _day(text: str | None) -> date | datetime | None:
    if text is None:
        return None
    try:
        until = date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until takes a day, as in 2027-01-31, not {text[:64]!r}") from None
    # As the policy reads it: of a day its end counts.
    rule = as_text([Command("x", Action.DENY, until=until)])
    if parse(rule, "--until", files.names(ask=False)).rules[0].ended(datetime.now(UTC)):
        raise UsageError(f"--until {text[:64]!r} is over already: the rule would never count")
    return until


def _command(arguments: Namespace, word: str, new: list[Command]) -> tuple[str, bool]:
    """Change what commands say of a word, and have the daemon take it; where it does not, all is as it was.

    Without new commands what they said is taken back. Return the file, and whether a daemon has taken it.
    """
    directory, runtime, reachable = _places()
    folder, name = (runtime, RUNTIME_COMMANDS) if arguments.runtime else (directory, COMMANDS)
    path = os.path.join(folder, name)
    with ExitStack() as stack:
        stack.enter_context(_alone(folder))
        before, had = _commands(path)
        left = changed(had, *new, forget=word)
        if not new and left == had:
            raise NotFound(f"no command denies or allows {word} in {path}")
        # Before it is written: a daemon that is not running would not start with a file that it cannot take.
        parse(as_text(left), name, files.names(ask=False))
        changes = [(path, before, left)]
        beside = os.path.join(runtime, RUNTIME_COMMANDS)
        if new and not arguments.runtime and os.path.lexists(beside):
            # What an earlier command with --runtime said of it is read first, and would stand.
            stack.enter_context(_alone(runtime))
            told, others = _commands(beside)
            if (kept := changed(others, forget=word)) != others:
                changes.append((beside, told, kept))
        for each, _before, items in changes:
            _put(each, as_text(items) if items else None)
        if not reachable:
            return path, False
        try:
            Connection().call("ReloadPolicy")
        except Reply as reply:
            for each, text, _items in changes:
                _put(each, text)
            raise reply.as_error() from None
    return path, True


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


def _places() -> tuple[str, str, bool]:
    """Return where files of commands go, those with --runtime too, and whether a daemon said so."""
    try:
        told = ask("GetPolicy", "policy")
    except Unreachable:
        return files.place("/"), files.place("/", runtime=True), False
    return str(told["directory"]), str(told["runtime_directory"]), True


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


def _tell_of(meant: Meaning, *, unload: bool, denied: bool) -> int:
    """Say what a denial does not reach: what is in the kernel already. Return 1 where that was to go."""
    globs = meant.globs if meant.globs is not None and not meant.by_name else None
    names = {plain(name) for name in meant.modules or (meant.word,)}
    if meant.built_in:
        _say(f"{few(meant.built_in)}: part of the kernel image, where no denial and no unloading reaches it")
    status = 1 if meant.built_in and unload else 0
    # What came last goes first: it may need what came before.
    for module in reversed(ask("ListModules", "modules")):
        name = module["name"]
        if not (globs.matches(plain(name)) if globs is not None else plain(name) in names):
            continue
        if not unload:
            _say(f"{name} is in the kernel already: --unload unloads it")
            continue
        try:
            Connection().call("RemoveModule", name=name)
            print(f"{name}: unloaded")
        except Reply as reply:
            err = reply.as_error()
            if isinstance(err, NotFound):
                continue  # it went meanwhile, with another one or by another hand
            status = 1
            _say(f"{name} {'stays denied, but is' if denied else 'is'} still in the kernel: {err}")
    return status
