"""What a request would load, in order, and why: a pure function of what is installed, configured and live."""

from __future__ import annotations

import enum
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from kmodd.errors import KmoddError
from kmodd.tree.index import Index
from kmodd.tree.lookup import Found, Match, lookup
from kmodd.tree.modprobed import Config, Softdep

_DEPTH_MAX = 64
"""How deep soft dependencies of soft dependencies are followed; they may be written as a circle."""
_STEPS_MAX = 20_000
_WORK_MAX = 500_000
"""Comparisons, look-ups and dependencies of a request: tenths of a second. A real plan has some thousand."""
_CHARACTERS = 64
"""Characters of parameters that count as much as a look-up."""


class TooLarge(KmoddError):
    """The configuration makes more steps of a name than any machine has modules."""


class _Budget:
    """How much work a request may still make: soft dependencies multiply."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _WORK_MAX

    def spend(self, amount: int) -> None:
        """Take some of it.

        Raises:
            TooLarge: there is no more.
        """
        self._left -= amount
        if self._left < 0:
            raise TooLarge(f"more than {_WORK_MAX} look-ups for one name: see the lines of modprobe.d")


class Action(enum.Enum):
    """What a step does."""

    INSERT = "insert"
    """The module's file is given to the kernel."""
    RUN = "run"
    """The `install` command of modprobe.d is run in its place."""
    NOTHING = "nothing"
    """Nothing: it is live already."""
    BUILT_IN = "built-in"
    """Nothing: it is part of the kernel image."""


class Verdict(enum.Enum):
    """What becomes of one of the modules that a name stands for."""

    LOAD = "load"
    """Its steps are taken."""
    LIVE = "already-live"
    """It is live: nothing is done."""
    BUILT_IN = "built-in"
    """It is part of the kernel image."""
    BLACKLISTED = "blacklisted"
    """modprobe.d blacklists it, which holds for what is found by an alias."""


@dataclass(frozen=True, slots=True)
class Step:
    """One module of a target.

    `needed_by`: the module that it is a dependency or soft dependency of; None for the one requested.
    `path` is its file, None where there is none. `parameters`: its options, as `name=value name=value`.
    `required`: whether the target fails with it; soft dependencies are not. `after`: the numbers of the
    steps of this target, from 0, that must have ended before. `named`: it is the target's own module, which
    is not always the last, nor always asked for first: its soft dependencies may need it. `needs`: those of
    `after` that it needs, without the one that it comes behind as a post soft dependency.
    """

    module: str
    action: Action
    reason: str
    needed_by: str | None
    required: bool
    path: str | None
    parameters: str
    command: str | None
    after: tuple[int, ...]
    named: bool = False
    needs: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as `kmodd resolve --json` shows it."""
        return {
            "module": self.module,
            "action": self.action.value,
            "reason": self.reason,
            "needed_by": self.needed_by,
            "required": self.required,
            "path": self.path,
            "parameters": self.parameters,
            "command": self.command,
            "after": list(self.after),
        }


@dataclass(frozen=True, slots=True)
class Target:
    """One of the modules that a name stands for, with all that is loaded for it, in order.

    `unpaired`: names of soft dependencies whose brackets do not pair, and that so stand for nothing.
    """

    module: str
    why: str
    verdict: Verdict
    steps: tuple[Step, ...]
    blacklisted_at: str | None = None
    unpaired: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as `kmodd resolve --json` shows it."""
        return {
            "module": self.module,
            "why": self.why,
            "verdict": self.verdict.value,
            "blacklisted_at": self.blacklisted_at,
            "steps": [step.as_json() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request for `name` does. No targets: nothing of that name is installed."""

    name: str
    targets: tuple[Target, ...]

    def modules(self) -> Iterator[str]:
        """Yield every module of the plan, those that are live or built in too, each once."""
        seen: dict[str, None] = {}
        for target in self.targets:
            seen.setdefault(target.module)
            for step in target.steps:
                seen.setdefault(step.module)
        return iter(seen)

    def loads(self) -> list[str]:
        """Return the modules that would be loaded, in order, each once."""
        steps = [step for target in self.targets for step in target.steps]
        return list(
            dict.fromkeys(step.module for step in steps if step.action in {Action.INSERT, Action.RUN})
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as `kmodd resolve --json` shows it; `modules`: what would be loaded, in order."""
        return {
            "modules": self.loads(),
            "name": self.name,
            "targets": [target.as_json() for target in self.targets],
        }


@dataclass(frozen=True, slots=True)
class Rules:
    """How a plan is made, where modprobe's options or its known flaws change that.

    `exact`: as kmod does: of several `softdep` lines for a module only the first counts, and a module with
    soft dependencies has no `install` command. `blacklist_names`: a module asked for by its own name may
    be blacklisted too (`-b`). `ignore_commands`: those of the named module are not run (`-i`).
    `parameters`: added to the options of the named module. `show_all`: what is built in has its commands,
    soft dependencies and blacklist too, as `--show-depends` has it.
    """

    exact: bool = False
    blacklist_names: bool = False
    ignore_commands: bool = False
    parameters: str = ""
    show_all: bool = False


DEFAULT = Rules()


def resolve(index: Index, config: Config, live: Container[str], name: str, rules: Rules = DEFAULT) -> Plan:
    """Return what a request for `name` would do; `live` are the modules that need nothing done.

    Raises:
        BadBrackets: the name holds brackets that do not pair.
        TooLarge: the configuration leads into more than 20,000 steps of a module, or far too many look-ups.
    """
    matches = lookup(index, config, name)
    if not rules.exact:
        # Several patterns of one module may match: it is loaded where it comes first.
        first: dict[str, Match] = {}
        for match in matches:
            first.setdefault(match.module, match)
        matches = list(first.values())
    budget = _Budget()
    return Plan(name, tuple(_target(index, config, live, match, rules, budget) for match in matches))


def target(index: Index, config: Config, live: Container[str], match: Match, rules: Rules) -> Target:
    """Return what is done for one of the modules that a name stands for.

    Raises:
        TooLarge: the configuration leads into more than 20,000 steps, or far too many look-ups.
    """
    return _target(index, config, live, match, rules, _Budget())


def _target(
    index: Index, config: Config, live: Container[str], match: Match, rules: Rules, budget: _Budget
) -> Target:
    why = match.found.value if match.alias is None else f"{match.found.value} {match.alias}"
    if match.module in live:
        return Target(match.module, why, Verdict.LIVE, ())
    held = config.blacklist.get(match.module)
    blacklisted = held is not None and (match.alias is not None or rules.blacklist_names)
    if index.is_builtin(match.module) and not rules.show_all:
        return Target(match.module, why, Verdict.BUILT_IN, ())
    if blacklisted:
        return Target(match.module, why, Verdict.BLACKLISTED, (), str(held))
    walk = _Walk(index, config, live, rules, budget)
    steps = walk.steps(match)
    return Target(match.module, why, Verdict.LOAD, steps, unpaired=tuple(walk.unpaired))


@dataclass(frozen=True, slots=True)
class _Entry:
    match: Match
    reason: str
    needed_by: str | None
    required: bool
    commands: bool
    softdeps: tuple[Softdep, ...]
    behind: int | None
    """The number of the entry whose post soft dependency it is."""


class _Walk:
    """The modules of one target in the order of modprobe: dependencies, pre, the module, post."""

    def __init__(
        self, index: Index, config: Config, live: Container[str], rules: Rules, budget: _Budget
    ) -> None:
        self._index = index
        self._config = config
        self._live = live
        self._rules = rules
        self._budget = budget
        self._looked_up: dict[str, list[Match] | None] = {}
        self._visited: set[tuple[str, ...]] = set()
        self._entries: list[_Entry] = []
        self._number: dict[str, int] = {}
        self.unpaired: list[str] = []

    def steps(self, match: Match) -> tuple[Step, ...]:
        self._named = match
        needed = [Match(module, Found.NAME) for module in self._dependencies(match.module)]
        self._required = {self._key(one) for one in (match, *needed)}
        self._probe(match, "requested", None, 0, commands=not self._rules.ignore_commands)
        return tuple(self._step(number, entry) for number, entry in enumerate(self._entries))

    def _probe(
        self,
        match: Match,
        reason: str,
        parent: str | None,
        depth: int,
        behind: int | None = None,
        *,
        commands: bool = True,
    ) -> None:
        key = self._key(match)
        if key in self._visited or depth > _DEPTH_MAX:
            return
        self._visited.add(key)
        if not commands:
            # -i leaves out the named module's soft dependencies, not what it needs.
            for dependency in self._dependencies(match.module):
                why = f"dependency of {match.module}"
                self._with_softdeps(Match(dependency, Found.NAME), why, match.module, depth, None)
            self._add(match, reason, parent, (), behind, commands=False)
            return
        for dependency in self._dependencies(match.module):
            self._with_softdeps(
                Match(dependency, Found.NAME), f"dependency of {match.module}", match.module, depth, behind
            )
        self._with_softdeps(match, reason, parent, depth, behind)

    def _with_softdeps(
        self, match: Match, reason: str, parent: str | None, depth: int, behind: int | None
    ) -> None:
        if not self._rules.exact and match.module in self._number:
            return
        self._budget.spend(1 + self._config.softdeps.wild)
        softdeps = self._config.softdeps.find((match.module,))
        if self._rules.exact:
            softdeps = softdeps[:1]
        # kmod looks all of them up before it goes into any.
        pre = [(line, found) for line in softdeps for name in line.pre for found in self._noted(name)]
        post = [(line, found) for line in softdeps for name in line.post for found in self._noted(name)]
        for line, found in pre:
            why = f"pre softdep of {match.module} ({line.place})"
            self._probe(found, why, match.module, depth + 1)
        # kmod: a module with a soft dependency that is there has no install command (kmod issue 446).
        commands = not (self._rules.exact and (pre or post))
        own = self._add(match, reason, parent, tuple(softdeps), behind, commands=commands)
        for line, found in post:
            why = f"post softdep of {match.module} ({line.place})"
            self._probe(found, why, match.module, depth + 1, own)

    def _key(self, match: Match) -> tuple[str, ...]:
        """Return what tells modules apart: for kmod found by an alias is another one than found by name."""
        return match.names if self._rules.exact else (match.module,)

    def _noted(self, name: str) -> list[Match]:
        """Look a soft dependency up, and note where its brackets do not pair."""
        found = self._lookup(name)
        if found is None:
            self.unpaired.append(name)
        return found or []

    def _lookup(self, name: str) -> list[Match] | None:
        """Return what a soft dependency stands for; None where its brackets do not pair."""
        if name not in self._looked_up:
            self._budget.spend(self._config.aliases.wild)
            try:
                self._looked_up[name] = lookup(self._index, self._config, name)
            except KmoddError:
                self._looked_up[name] = None
        found = self._looked_up[name]
        self._budget.spend(1 + len(found or ()))
        return found

    def _dependencies(self, module: str) -> tuple[str, ...]:
        found = self._index.dependencies(module)
        self._budget.spend(1 + len(found))
        return found

    def _add(
        self,
        match: Match,
        reason: str,
        parent: str | None,
        softdeps: tuple[Softdep, ...],
        behind: int | None,
        *,
        commands: bool,
    ) -> int:
        number = len(self._entries)
        if number >= _STEPS_MAX:
            raise TooLarge(
                f"more than {_STEPS_MAX} steps for one module: see the softdep lines of modprobe.d"
            )
        required = self._key(match) in self._required
        self._entries.append(_Entry(match, reason, parent, required, commands, softdeps, behind))
        self._number.setdefault(match.module, number)
        return number

    def _step(self, number: int, entry: _Entry) -> Step:
        module, names = entry.match.module, entry.match.names
        known = self._number
        before = {known.get(dependency, number) for dependency in self._dependencies(module)}
        for line in entry.softdeps:
            for name in line.pre:
                before.update(known.get(found.module, number) for found in self._lookup(name) or ())
        after = needs = tuple(sorted(item for item in before if item < number)) if before else ()
        if entry.behind is not None and entry.behind < number and entry.behind not in before:
            after = tuple(sorted((*needs, entry.behind)))
        parameters = self._config.parameters_of(names)
        self._budget.spend(self._config.install.wild + len(parameters) // _CHARACTERS)
        named = entry.match is self._named or self._key(entry.match) == self._key(self._named)
        if named and self._rules.parameters:
            parameters = f"{parameters} {self._rules.parameters}".strip()
        path = self._index.path(module)
        action, command = self._action(entry, path)
        return Step(
            module,
            action,
            entry.reason,
            entry.needed_by,
            entry.required,
            path,
            parameters,
            command,
            after,
            named,
            needs,
        )

    def _action(self, entry: _Entry, path: str | None) -> tuple[Action, str | None]:
        """Return what is done for a module, and the `install` command that is run in its place, if any."""
        module = entry.match.module
        if module in self._live:
            return Action.NOTHING, None
        install = self._config.install.find((module,)) if entry.commands else []
        if entry.match.found is Found.COMMAND:
            # What only a command stands for has its own one, whatever pattern comes before.
            install = [line for line in install if line.pattern == module] or install
        if path is None and self._index.is_builtin(module) and not (install and self._rules.show_all):
            return Action.BUILT_IN, None
        return (Action.RUN, install[0].command) if install else (Action.INSERT, None)
