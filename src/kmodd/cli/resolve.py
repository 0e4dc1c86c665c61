"""`kmodd resolve`: what a request would load, in order, and why. It needs no daemon and no root."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Container

from kmodd import names
from kmodd.errors import KmoddError, NotFound
from kmodd.kernel.linux import LinuxKernel
from kmodd.tree import modprobed, snapshot
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config
from kmodd.tree.plan import Action, Plan, Rules, Step, Target, Verdict
from kmodd.tree.plan import resolve as make_plan
from kmodd.views import show


def resolve(arguments: Namespace) -> int:
    """Resolve each name; the exit status is the first failure's."""
    wanted = [names.check(os.fsencode(name)) for name in arguments.name]
    index, config, live = sources(arguments.release, arguments.tree)
    rules = Rules(exact=arguments.kmod_exact)
    status = 0
    for name in wanted:
        plan = make_plan(index, config, live, name, rules)
        if arguments.json:
            print(json.dumps({"release": index.release, **plan.as_json()}))
        elif plan.targets:
            print("\n".join(_lines(plan)))
        if not plan.targets:
            err = NotFound(f"no module of the name or alias {name} is installed for {index.release}")
            print(f"kmodd: {err}", file=sys.stderr)
            status = status or err.exit_status
    for problem in (*index.problems, *map(str, config.problems)):
        print(f"kmodd: {names.printable(os.fsencode(problem))}", file=sys.stderr)
    return status


class _Nothing:
    """Of another kernel nothing is live."""

    def __contains__(self, module: object) -> bool:
        return False


class _Live:
    """What is live in the running kernel."""

    def __init__(self) -> None:
        self._kernel = LinuxKernel()

    def __contains__(self, module: object) -> bool:
        return self._kernel.is_live(str(module))


def sources(release: str | None, tree: str | None) -> tuple[Index, Config, Container[str]]:
    """Return what is installed and configured, and what is live, for the options.

    Of a root directory its own modprobe.d counts, else this machine's.
    """
    running = os.uname().release
    if tree is None:
        index = Index(f"{snapshot.ROOT}/{release or running}")
        config = snapshot.configuration(index, only_trusted=False)
        return index, config, _Live() if index.release == running else _Nothing()
    root = f"{tree}{snapshot.ROOT}"
    if not os.path.isdir(root):
        directory = tree if release is None else f"{tree}/{release}"
        index = Index(os.path.abspath(directory))
        return index, snapshot.configuration(index, only_trusted=False), _Nothing()
    index = Index(f"{root}/{release or _only(root, running)}")
    paths = [tree + path for path in modprobed.DIRECTORIES]
    config = modprobed.load(paths, index.directory)
    if (lines := index.softdep_lines()) is not None:
        modprobed.parse(config, lines, f"{index.directory} (.modinfo)")
    return index, config, _Nothing()


def _only(root: str, running: str) -> str:
    """Return the release whose modules are below `root`: the running one's, or the only one there is."""
    found = sorted(name for name in os.listdir(root) if not name.startswith("."))
    if running in found or not found:
        return running
    if len(found) > 1:
        raise KmoddError(f"{root} has modules of {', '.join(found)}: say which with --release")
    return found[0]


# What is shown


def _lines(plan: Plan) -> list[str]:
    lines = [f"{plan.name}:"]
    for target in plan.targets:
        lines.append(f"  {target.module}  ({target.why}) {_verdict(target)}".rstrip())
        lines += _branch(target, None, "    ", set())
    return lines


def _verdict(target: Target) -> str:
    match target.verdict:
        case Verdict.LOAD:
            return ""
        case Verdict.BLACKLISTED:
            return show.outcome("denied") + f": blacklisted by {target.blacklisted_at}"
        case _:
            return show.outcome(target.verdict.value)


def _branch(target: Target, parent: str | None, indent: str, shown: set[str]) -> list[str]:
    """Return the steps that `parent` needs, each above what needs it; the numbers are the order."""
    lines = []
    for number, step in enumerate(target.steps, 1):
        if step.needed_by != parent or (step.module in shown and parent is not None):
            continue
        shown.add(step.module)
        lines.append(f"{indent}{number:2}. {_step(step)}")
        lines += _branch(target, step.module, indent + "    ", shown)
    return lines


def _step(step: Step) -> str:
    words = [step.module]
    if step.parameters:
        words.append(step.parameters)
    match step.action:
        case Action.RUN:
            words.append(f"[install: {step.command}]")
        case Action.NOTHING:
            words.append("[already live]")
        case Action.BUILT_IN:
            words.append("[built in]")
        case Action.INSERT if step.path is None:
            words.append("[no file]")
        case _:
            pass
    return f"{' '.join(words)}  - {step.reason}"
