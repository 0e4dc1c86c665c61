"""`kmodd policy` on files and the journal: what needs more than to ask the daemon."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from datetime import UTC, datetime

from kmodd.cli.policy import ask
from kmodd.cli.resolve import sources
from kmodd.errors import KmoddError, NotFound, UsageError
from kmodd.policy import files
from kmodd.policy import groups as shipped
from kmodd.policy import lint as linting
from kmodd.policy.export import modprobe_d
from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.parse import PolicyError
from kmodd.policy.parse import parse as parse_file
from kmodd.policy.plans import wanted
from kmodd.policy.rules import Mode, Wanted
from kmodd.policy.shown import as_json, checked, supposed
from kmodd.settings import load as load_settings
from kmodd.tree import snapshot
from kmodd.tree.plan import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def below(root: str) -> PolicyInForce:
    """Return the policy of the files below a root directory, as a daemon there would have it in force."""
    policy = PolicyInForce()
    policy.replace(files.load(root))
    policy.set_mode(Mode(load_settings(root)["policy.mode"]))
    policy.seal(os.path.lexists(os.path.join(root, "run/kmodd/sealed")))
    return policy


def in_force() -> PolicyInForce:
    """Return the daemon's policy, to be asked here."""
    told = ask("GetPolicy", "policy")
    policy = PolicyInForce()
    policy.replace(files.assemble({file["name"]: file["text"] for file in told["files"]}, files.names()))
    policy.set_mode(Mode(told["mode"]))
    policy.seal(bool(told["sealed"]))
    return policy


def check(root: str, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what `io.kmodd.CheckPolicy` would, of the files below `root` and the modules installed there."""
    policy = below(root)
    would_load: Wanted | None = None
    problem = None
    try:
        index, config, live = sources(None, None if root == "/" else root)
        would_load = wanted(resolve(index, config, live, name))
    except KmoddError as err:
        problem = str(err)
    return checked(policy, supposed(name, **facts), would_load, problem)


def shown(root: str) -> dict[str, Any]:
    """Return what `io.kmodd.GetPolicy` would, of the files below `root`."""
    return as_json(below(root), root)


# Lint


def lint(arguments: Namespace) -> int:
    """Tell every mistake with file and line: 1 where one keeps a file from being taken, else 0."""
    root = arguments.root or "/"
    names = files.names()
    found: list[tuple[str, str, int | None, str]] = []
    taken = []
    try:
        texts = files.read(root)
    except PolicyError as err:
        found.append(("error", err.file, err.line, err.message))
        texts = {}
    for name, text in texts.items():
        try:
            taken.append(parse_file(text, name, names))
        except PolicyError as err:
            found.append(("error", err.file, err.line, err.message))
    doubts = linting.lint(Policy(tuple(taken)), datetime.now(UTC), _installed(root))
    found += [("warning", file, line, words) for file, line, words in doubts]
    for kind, file, line, words in found:
        if arguments.json:
            print(json.dumps({"kind": kind, "file": file, "line": line, "message": words}))
        else:
            print(f"{file}:{line or 1}: {kind}: {words}")
    if not found and not arguments.json:
        print(
            f"{sum(len(file.rules) for file in taken)} rules in {len(taken)} files, nothing wrong with them"
        )
    return 1 if any(kind == "error" for kind, *_rest in found) else 0


def _installed(root: str) -> list[str] | None:
    """Return the names of all modules below a root directory; None where there are none that can be read."""
    if not os.path.isdir(os.path.join(root, snapshot.ROOT.lstrip("/"))):
        return None
    try:
        index, config, _live = sources(None, None if root == "/" else root)
        named = [line.pattern for line in (*config.install.items, *config.remove.items)]
        return [*index.modules(), *index.builtins(), *named]
    except (KmoddError, OSError):
        return None


# What ships with kmodd


def groups(arguments: Namespace) -> int:
    """Show the groups of modules that rules may name, or one of them whole."""
    found = shipped.load()
    if arguments.what:
        name = arguments.what[0].removeprefix("@")
        if name not in found:
            raise NotFound(f"there is no group @{name}: there are {', '.join('@' + each for each in found)}")
        found = {name: found[name]}
    for name, group in found.items():
        if arguments.json:
            told = {"name": name, "description": group.description, "modules": list(group.patterns)}
            print(json.dumps(told))
        elif arguments.what:
            print(f"@{name}: {group.description}\n{' '.join(group.patterns)}")
        else:
            print(f"@{name}: {group.description} ({len(group.patterns)} patterns)")
    return 0


def preset(arguments: Namespace) -> int:
    """Print a policy file that ships with kmodd, or the names of all of them."""
    directory = os.path.join(os.path.dirname(files.__file__), "presets")
    known = sorted(name.removesuffix(".toml") for name in os.listdir(directory) if name.endswith(".toml"))
    if not arguments.what:
        for name in known:
            with open(os.path.join(directory, f"{name}.toml"), encoding="utf-8") as file:
                print(f"{name}: {file.readline().lstrip('# ').rstrip()}")
        return 0
    if arguments.what[0] not in known:
        raise NotFound(f"there is no preset {arguments.what[0]!r}: there are {', '.join(known)}")
    with open(os.path.join(directory, f"{arguments.what[0]}.toml"), encoding="utf-8") as file:
        print(file.read(), end="")
    return 0


def export(arguments: Namespace) -> int:
    """Print what everybody is denied as a file for modprobe.d."""
    if not arguments.modprobe_d:
        raise UsageError("kmodd policy export takes --modprobe-d: there is no other format")
    policy = below(arguments.root) if arguments.root is not None else in_force()
    if policy.mode is not Mode.ENFORCE:
        raise KmoddError(f"nothing is denied: the policy's mode is {policy.mode.value}")
    index, config, _live = sources(None, None if arguments.root in {None, "/"} else arguments.root)

    def needed_by(module: str) -> frozenset[str]:
        return wanted(resolve(index, config, frozenset(), module)).modules

    now = datetime.now(UTC)
    made = f"{now:%Y-%m-%d %H:%M} UTC"
    print(modprobe_d(policy.policy.rules, index.modules(), needed_by, now, made), end="")
    return 0
