"""Removing: `modprobe -r`."""

from __future__ import annotations

import errno
import os
import time

from kmodd.cli.classic import say, shell
from kmodd.cli.classic.seen import refcount, state
from kmodd.cli.classic.settings import FIRST_TIME, HOLDERS
from kmodd.kernel import libc
from kmodd.tree.glob import BadBrackets
from kmodd.tree.lookup import Found, Match, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.cli.classic.say import Messages
    from kmodd.cli.classic.seen import Tree
    from kmodd.cli.classic.settings import Settings
    from kmodd.tree.modprobed import Config, Softdep


class Remover:
    """Takes modules out of the kernel, or shows what would be done."""

    def __init__(self, settings: Settings, messages: Messages, tree: Tree, config: Config) -> None:
        self._settings = settings
        self._messages = messages
        self._tree = tree
        self._config = config
        letters = settings.letters
        self._first_time = FIRST_TIME in letters
        self._dry_run = bool(letters & {"D", "n"})
        self._ignore_loaded = "D" in letters
        self._ignore_commands = "i" in letters
        self._holders = HOLDERS in letters
        self._under_way: set[tuple[str, ...]] = set()
        self._flags = os.O_NONBLOCK | (os.O_TRUNC if "f" in letters else 0)

    def remove(self, name: str) -> bool:
        """Remove all that a name stands for; return whether it could be."""
        try:
            matches = lookup(self._tree, self._config, name)
        except BadBrackets:
            return False  # without a word, as in kmod
        if not matches:
            self._messages.about_argument(f"Module {name} not found.")
            return False
        return all(self._module(match, holders=self._holders) for match in matches)

    def _lookup(self, name: str) -> list[Match]:
        try:
            return lookup(self._tree, self._config, name)
        except BadBrackets:
            return []

    def _module(self, match: Match, *, holders: bool = False, ignore_builtin: bool = False) -> bool:
        """Remove a module with what is there for it alone; return whether it is gone."""
        if match.names in self._under_way:
            return True  # soft dependencies in a circle, which kmod follows until its stack is full
        self._under_way.add(match.names)
        try:
            return self._remove(match, holders=holders, ignore_builtin=ignore_builtin)
        finally:
            self._under_way.discard(match.names)

    def _remove(self, match: Match, *, holders: bool, ignore_builtin: bool) -> bool:
        module = match.module
        softdep: Softdep | None = None
        command: str | None = None
        if not self._ignore_commands:
            softdep = self._softdep(module)
            command = self._command_for(match)
        looks = command is None and not self._ignore_loaded
        if looks and self._tree.is_builtin(module):
            if not ignore_builtin:
                self._messages.about_argument(f"Module {module} is builtin.")
            return ignore_builtin
        if looks and state(module) is None:
            return self._is_gone(module)
        if softdep:
            self._modules(softdep.post)
        if holders and not self._without_holders(module):
            return False
        if looks and not self._settings.wait and (refcount(module) or 0) > 0:
            self._messages.about_argument(f"Module {module} is in use.")
            return False
        if not (self._delete(module) if command is None else self._command(module, command)):
            return False
        # What a command is to do with them is the command's affair.
        for dependency in self._tree.dependencies(module) if command is None else ():
            if not self._tree.is_builtin(dependency) and refcount(dependency) == 0:
                self._delete(dependency)
        if softdep:
            self._modules(softdep.pre)
        return True

    def _softdep(self, module: str) -> Softdep | None:
        """Return the first line of soft dependencies; what is wrong with it is told at once, as in kmod."""
        found = next(iter(self._config.softdeps.find((module,))), None)
        for name in (*found.pre, *found.post) if found else ():
            try:
                lookup(self._tree, self._config, name)
            except BadBrackets:
                self._messages.error(f"failed to lookup soft dependency '{name}', continuing anyway.")
        return found

    def _is_gone(self, module: str) -> bool:
        if self._first_time:
            self._messages.about_argument(f"Module {module} is not in kernel.")
        return not self._first_time

    def _modules(self, names: Iterable[str]) -> None:
        """Remove soft dependencies, the last first; it does not matter whether they can be."""
        found = [match for name in names for match in self._lookup(name)]
        for match in reversed(found):
            self._module(match, ignore_builtin=True)

    def _without_holders(self, module: str) -> bool:
        directory = f"/sys/module/{module}/holders"
        try:
            names = os.listdir(directory)
        except OSError as err:
            self._messages.error(f"could not open '{directory}': {err.strerror}")
            names = []
        return all(self._module(Match(name, Found.NAME), ignore_builtin=True) for name in reversed(names))

    def _command_for(self, match: Match) -> str | None:
        """Return the `remove` command of a module: the first that matches, or what it was found by."""
        lines, module = self._config.remove.find((match.module,)), match.module
        own = []
        if match.found is Found.COMMAND and all(one.pattern != module for one in self._config.install.items):
            own = [line for line in lines if line.pattern == module]
        return next((line.command for line in own or lines), None)

    def _command(self, module: str, command: str) -> bool:
        if self._settings.verbose:
            say.write(os.fsencode("remove " + command.replace("$CMDLINE_OPTS", "") + "\n"))
        if not self._dry_run and shell.run(command, module, ""):
            self._messages.about_argument(f"Error running remove command for {module}")
            return False
        return True

    def _delete(self, module: str) -> bool:
        """Remove one module and no other; return whether it is gone."""
        if self._settings.verbose:
            say.write(os.fsencode(f"rmmod {module}\n"))
        if self._dry_run:
            return True
        pause, left = 1, self._settings.wait
        while True:
            try:
                libc.delete_module(module, self._flags)
            except OSError as err:
                if err.errno == errno.EAGAIN and left > 0:
                    pause = min(pause, left)
                    time.sleep(pause / 1000)
                    left -= pause
                    pause *= 2
                    continue
                self._messages.error(f"could not remove '{module}': {err.strerror}")
                return err.errno == errno.EEXIST and self._is_gone(module)
            return True
