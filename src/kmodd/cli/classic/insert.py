"""Inserting, or showing what would be inserted: the default of `modprobe`, and its `-D`, `-n` and `-R`."""

from __future__ import annotations

import errno
import os

from kmodd.cli.classic import say, shell
from kmodd.cli.classic.seen import LiveModules
from kmodd.cli.classic.settings import FIRST_TIME
from kmodd.errors import KmoddError
from kmodd.kernel import modulecalls
from kmodd.tree import plan
from kmodd.tree.glob import BadBrackets
from kmodd.tree.lookup import Found, Match, lookup
from kmodd.tree.plan import Rules, Step, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from kmodd.cli.classic.say import Messages
    from kmodd.cli.classic.seen import Tree
    from kmodd.cli.classic.settings import Settings
    from kmodd.tree.modprobed import Config

_MEANINGS = {
    errno.EEXIST: "Module already in kernel",
    errno.ENOENT: "Unknown symbol in module, or unknown parameter (see dmesg)",
}


class Inserter:
    """Puts modules into the kernel, or shows what would be done."""

    def __init__(
        self, settings: Settings, messages: Messages, tree: Tree, config: Config, directory: str
    ) -> None:
        self._settings = settings
        self._messages = messages
        self._tree = tree
        self._config = config
        self._directory = directory
        letters = settings.letters
        self._only_names = "R" in letters
        self._first_time = FIRST_TIME in letters
        self._dry_run = bool(letters & {"D", "n"})
        self._ignore_loaded = "D" in letters
        self._live: Container[str] = () if self._ignore_loaded else LiveModules()
        self.inserted: list[str] = []
        """The modules that the kernel took."""
        self._rules = Rules(exact=True, blacklist_names="b" in letters, ignore_commands="i" in letters)

    def insert(self, name: str, parameters: str) -> bool:
        """Insert all that a name stands for; return whether the last of it could be."""
        self._tree.tells_builtin = True
        try:
            matches = lookup(self._tree, self._config, name)
        except BadBrackets:
            matches = []
        if not matches:
            self._messages.about_argument(f"Module {name} not found in directory {self._directory}")
            return False
        if self._only_names:
            say.write(b"".join(os.fsencode(match.module) + b"\n" for match in matches))
            return True
        self._tree.tells_builtin = not self._ignore_loaded
        done = True
        for match in matches:
            done = self._probe(match, parameters)
        return done

    def _probe(self, match: Match, parameters: str) -> bool:
        if self._ignore_loaded:
            match = Match(match.module, Found.NAME, match.alias)
        try:
            target = plan.target(self._tree, self._config, self._live, match, self._rules)
            for soft in target.unpaired:
                self._messages.error(f"failed to lookup soft dependency '{soft}', continuing anyway.")
            if target.verdict in {Verdict.LIVE, Verdict.BUILT_IN}:
                self._is_there(named=True)
            for step in target.steps:
                self._take(step, parameters)
        except (OSError, KmoddError) as err:
            number = getattr(err, "errno", None) or 0
            meaning = _MEANINGS.get(number) or (os.strerror(number) if number else str(err))
            self._messages.error(f"could not insert '{match.module}': {meaning}")
            return False
        return True

    def _is_there(self, *, named: bool) -> None:
        if named and self._first_time:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _take(self, step: Step, parameters: str) -> None:
        """Take one step.

        Raises:
            OSError, KmoddError: it could not be taken, and the target cannot do without.
        """
        options = parameters if step.named else ""
        if step.parameters:  # kmod: with a blank behind them, whether or not there are others
            options = f"{step.parameters} {options}"
        try:
            self._do(step, options)
        except (OSError, KmoddError) as err:
            if getattr(err, "errno", None) == errno.EEXIST:
                self._is_there(named=step.named)
            elif step.required:
                raise

    def _do(self, step: Step, options: str) -> None:
        # Asked again: an install command before it may have brought it.
        if self._tree.is_builtin(step.module) or step.module in self._live:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if self._settings.verbose:
            self._show(step, options)
        if self._dry_run:
            return
        if step.command is not None:
            status = shell.run(step.command, step.module, options)
            if status:
                command = step.command.replace("$CMDLINE_OPTS", options)
                self._messages.error(
                    f"Error running install command '{command}' for module {step.module}: retcode {status}"
                )
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        elif step.path is None:
            self._messages.error(f"could not find module by name='{step.module}'")
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        else:
            modulecalls.load_image(step.path, os.fsencode(options), force_flags=self._settings.force_flags)
            self.inserted.append(step.module)

    def _show(self, step: Step, options: str) -> None:
        if step.command is not None:
            line = f"install {step.command} {options}"
        elif step.path is not None:
            line = f"insmod {step.path} {options}"
        elif self._tree.is_in_image(step.module):
            line = f"builtin {step.module}"
        else:
            return  # only an alias stands for it
        say.write(os.fsencode(line) + b"\n")
