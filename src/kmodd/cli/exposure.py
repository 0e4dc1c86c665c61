"""`kmodd exposure`: how many modules could be had through requests of the kernel, and by whom."""

from __future__ import annotations

import json
from argparse import Namespace

from kmodd.cli.policy import ask
from kmodd.cli.policyfiles import below, in_force
from kmodd.cli.resolve import sources
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError
from kmodd.model import Requester, Source
from kmodd.policy import exposure as counting
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.plans import wanted
from kmodd.policy.reach import Reach
from kmodd.policy.rules import Facts, Wanted
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config
from kmodd.tree.plan import resolve
from kmodd.views import show

USER = 1000
"""The ordinary user that the policy is asked for; any other may have rules of his own."""

_WHO = {
    Reach.ANYONE: Requester(uid=USER, gid=USER, privileged=False),
    Reach.USER_NAMESPACE: Requester(uid=USER, gid=USER, privileged=False),
    Reach.PRIVILEGED: Requester(uid=0, gid=0, privileged=True),
}
_WORDS = {
    Reach.ANYONE: "an ordinary user",
    Reach.USER_NAMESPACE: "root in a user namespace",
    Reach.PRIVILEGED: "privileged",
}


def exposure(arguments: Namespace) -> int:
    """Print what could be had, what is live, and what was ever used."""
    index, config, _live = sources(None, None if arguments.root in {None, "/"} else arguments.root)
    if arguments.root is None:
        policy, live, used = in_force(), _live_now(), _ever_used()
    else:
        policy, live, used = below(arguments.root), frozenset(), frozenset()
    counter = _Counter(index, config, policy)
    found = counting.exposure(counting.reachable(index, config), counter.may, counter.closure, live, used)
    if arguments.json:
        print(json.dumps({"release": index.release, **found.as_json()}))
        return 0
    counts = [(_WORDS[who], len(found.of(who))) for who in Reach]
    counts += [("live", found.live), ("ever used", found.used)]
    print(f"{found.installed} modules are installed for {index.release}; by requests of the kernel may have")
    print(show.table([[what, str(count), _share(count, found.installed)] for what, count in counts]))
    if arguments.list:
        for who in Reach:
            print(f"{_WORDS[who]}: {' '.join(found.of(who)) or '-'}")
    return 0


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "-"


class _Counter:
    """Answers what `counting.exposure` asks: plans, and the policy's decisions on them."""

    def __init__(self, index: Index, config: Config, policy: PolicyInForce) -> None:
        self._index = index
        self._config = config
        self._policy = policy
        self._wanted: dict[str, Wanted | None] = {}

    def closure(self, name: str) -> frozenset[str]:
        found = self._plan(name)
        return frozenset() if found is None else found.modules

    def may(self, who: Reach, name: str, _modules: frozenset[str]) -> bool:
        facts = Facts(name, Source.KERNEL, _WHO[who])
        return self._policy.judge(facts, lambda: self._plan(name), again=True).allowed

    def _plan(self, name: str) -> Wanted | None:
        if name not in self._wanted:
            try:
                self._wanted[name] = wanted(resolve(self._index, self._config, frozenset(), name))
            except KmoddError:
                self._wanted[name] = None
        return self._wanted[name]


def _live_now() -> frozenset[str]:
    return frozenset(str(module["name"]) for module in ask("ListModules", "modules"))


def _ever_used() -> frozenset[str]:
    """Return the modules that were loaded, as far back as the journal goes."""
    used: set[str] = set()
    try:
        for reply in Connection().stream("Log"):
            if reply["event"]["event"] == "load":
                used.update(map(str, reply["event"]["modules"] or ()))
    except Reply as reply:
        raise reply.as_error() from None
    return frozenset(used)
