"""What a word of `kmodd policy deny` stands for, and whether the daemon denies that now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kmodd.cli.policy import ask
from kmodd.errors import KmoddError, NotFound, Unreachable
from kmodd.names import normalise, printable
from kmodd.policy import files
from kmodd.policy import groups as shipped
from kmodd.policy.patterns import Globs, plain
from kmodd.policy.rules import REQUEST, Action, Mode, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.tree.index import Index

_WHO: tuple[dict[str, Any], ...] = ({"uid": 65534, "gid": 65534, "groups": []}, {"uid": 0, "gid": 0})
"""Whom the daemon is asked about: somebody with no rights at all, and root."""
_ASKED_MAX = 16
"""Modules of a glob or a group that the daemon is asked about."""
_NAMES_MAX = 32
"""Names of an allow rule that are looked up: each is a question to the daemon."""
_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a word stands for.

    `modules`: what is installed of it; None where nobody can say. `ways`: for each rule that denies it,
    whether that is by the name that is asked for; else it is by the module. `built_in`: those of the modules
    that are part of the kernel image. `globs`: what the word matches, where it may match many.
    """

    word: str
    modules: tuple[str, ...] | None
    ways: tuple[bool, ...] = (False,)
    built_in: tuple[str, ...] = ()
    globs: Globs | None = None

    @property
    def by_name(self) -> bool:
        """Whether it is an alias of the modules, or a glob of aliases."""
        return True in self.ways


def few(modules: Sequence[str]) -> str:
    """Return the first of some modules in words."""
    more = f" and {len(modules) - _SHOWN_MAX} more" if len(modules) > _SHOWN_MAX else ""
    return " ".join(printable(os.fsencode(module)) for module in modules[:_SHOWN_MAX]) + more


# What a word stands for


def meaning(word: str) -> Meaning:
    """Return what a word stands for: a group, a glob, a module's name, or an alias.

    Raises:
        KmoddError: the daemon does not tell.
    """
    group = shipped.load().get(word[1:]) if word.startswith("@") else None
    if group is not None or any(char in word for char in "*?["):
        return _of_many(word, Globs.of(group.patterns if group is not None else [word], names=True))
    targets = _targets(word)
    if targets is None:
        return Meaning(word, None)
    modules = tuple(str(target["module"]) for target in targets)
    built_in = tuple(str(target["module"]) for target in targets if target["verdict"] == "built-in")
    if not modules or plain(word) in map(plain, modules):
        return Meaning(word, modules, built_in=built_in)
    # An alias of modprobe.d may have the name of a module: that is asked for by what needs it all the same.
    ways = (True, False) if _is_installed(normalise(word)) else (True,)
    return Meaning(word, modules, ways, built_in)


def _of_many(word: str, globs: Globs) -> Meaning:
    index = _index()
    if index is None:
        return Meaning(word, None, globs=globs)
    try:
        modules = tuple(module for module in index.modules() if globs.matches(plain(module)))
        built_in = tuple(module for module in index.builtins() if globs.matches(plain(module)))
        aliases = [] if modules or built_in or word.startswith("@") else index.aliases()
    except KmoddError:
        return Meaning(word, None, globs=globs)
    asked = tuple(dict.fromkeys(module for alias, module in aliases if globs.matches(plain(alias))))
    if asked:
        return Meaning(word, asked, (True,), globs=globs)
    return Meaning(word, modules + built_in, built_in=built_in, globs=globs)


# Imports in these: with a daemon a module's name needs none of it, and a denial is in a hurry.


def _targets(word: str) -> list[dict[str, Any]] | None:
    """Return the modules that a name stands for, as `kmodd resolve` has them; None where nobody can say."""
    try:
        return list(ask("Resolve", "plan", name=word)["targets"])
    except NotFound:
        return []
    except Unreachable:
        from kmodd.cli import resolve  # noqa: PLC0415 - as above
        from kmodd.tree import plan  # noqa: PLC0415 - as above

        try:
            found = plan.resolve(*resolve.sources(None, None), word)
        except KmoddError:
            return None
        return [target.as_json() for target in found.targets]
    except KmoddError:
        return None


def _index() -> Index | None:
    """Return what is installed for the daemon's kernel; None where that is a simulated one, or unknown."""
    from kmodd.cli import resolve  # noqa: PLC0415 - as above
    from kmodd.tree.index import Index  # noqa: PLC0415 - as above

    try:
        tree = ask("GetStatus", "status")["tree"]
        return None if tree is None or tree["directory"] is None else Index(tree["directory"])
    except Unreachable:
        try:
            return resolve.sources(None, None)[0]
        except KmoddError:
            return None
    except KmoddError:
        return None


def _is_installed(module: str) -> bool:
    index = _index()
    try:
        return index is not None and (module in index or index.is_builtin(module))
    except KmoddError:
        return False


# Whether it is denied


def obstacle(meant: Meaning, file: str) -> str | None:
    """Return why a rule in a file of commands, which the daemon has read, does not deny; None where it does.

    Raises:
        KmoddError: the daemon does not tell.
    """
    told = ask("GetPolicy", "policy")
    if told["mode"] != Mode.ENFORCE.value:
        return f"the policy's mode is {told['mode']}; `kmodd policy mode enforce` puts its rules in force"
    texts = {text["name"]: text["text"] for text in told["files"]}
    rules = files.assemble(texts, files.names(ask=False)).rules
    own = [number for number, rule in enumerate(rules) if rule.file == file and _is_own(rule, meant)]
    if not own:
        return f"{file} is not in force; see `kmodd policy show`"
    now = datetime.now(UTC)
    for rule in rules[: own[0]]:
        if _may_allow(rule, meant, now):
            return f"{rule.place} comes first and may allow it; remove that rule, or have it come later"
    status = ask("GetStatus", "status")
    hook = status["hook"]
    if status["kernel"]["type"] == "linux" and not hook["on"] and hook["error"] is None:
        return "the kernel does not ask kmodd for modules; `kmodd hook on` makes it"
    return next(_allowed(meant), None)


def _is_own(rule: Rule, meant: Meaning) -> bool:
    return rule.action is Action.DENY and meant.word in {rule.text.get("module"), rule.text.get("name")}


def _may_allow(rule: Rule, meant: Meaning, now: datetime) -> bool:
    """Whether a rule allows, to anybody, what a denial behind it is for."""
    if rule.action is not Action.ALLOW or rule.mode is not Mode.ENFORCE:
        return False
    if rule.ended(now) or REQUEST not in rule.operation:
        return False
    return _on_module(rule, meant) and _on_name(rule, meant)


def _on_module(rule: Rule, meant: Meaning) -> bool:
    if rule.module is None:
        return True
    names = [*(meant.modules or ()), meant.word] if False in meant.ways else list(meant.modules or ())
    if meant.globs is not None:
        # Of two globs nobody can say more than what each has of the other's names, and of what is installed.
        names += [*meant.globs.exact, *(name for name in rule.module.exact if meant.globs.matches(name))]
        if meant.modules is None and rule.module.wild is not None:
            return True
    return rule.module.any or any(rule.module.matches(plain(name)) for name in names)


def _on_name(rule: Rule, meant: Meaning) -> bool:
    if rule.name is None or rule.name.matches(plain(meant.word)):
        return True
    if rule.name.wild is not None or meant.globs is not None:
        return True  # an alias of the module, or one that the glob matches, may be among what it matches
    if meant.ways == (True,):
        return False
    if len(rule.name.exact) > _NAMES_MAX:
        return True
    for name in rule.name.exact:
        modules = ask("CheckPolicy", "checked", name=name, **_WHO[0])["modules"]
        if modules is None or plain(meant.word) in map(plain, modules):
            return True
    return False


def _allowed(meant: Meaning) -> Iterator[str]:
    """Yield in words what the daemon would allow now of what is to be denied, as far as it can be asked."""
    if meant.globs is None:
        names: tuple[str, ...] = (meant.word,) if meant.modules != () else ()
    else:
        names = () if meant.by_name else (meant.modules or ())[:_ASKED_MAX]
    for name in names:
        for who in _WHO:
            told = ask("CheckPolicy", "checked", name=name, **who)
            if meant.globs is not None and name not in (told["modules"] or (name,)):
                continue  # modprobe.d has that name stand for another module
            if told["allowed"]:
                by = told["problem"] or told["why"]
                yield f"uid {who['uid']} is still allowed {name}" + (f": {by}" if by else "")
