"""The broker and the policy: who is judged when, what a change does, and that each is answered once."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from kmodd.broker.tickets import Asker
from kmodd.kernel.simulated import Installed
from kmodd.model import Outcome, Requester, Source
from kmodd.policy.files import Policy
from kmodd.policy.parse import Names, parse
from support.bench import Bench
from support.virtual import run

NAMES = Names(lambda _name: None, lambda _name: None, {})
USER, ROOT = Requester(uid=1000, privileged=False), Requester(uid=0, privileged=True)


def put(bench: Bench, text: str) -> None:
    bench.broker.policy.replace(Policy((parse(text, "x.toml", NAMES),)))


def deny(rest: str) -> str:
    return f'[[rule]]\naction = "deny"\n{rest}\n'


async def until(check: Any) -> None:
    while not check():
        await asyncio.sleep(0.001)


def test_requests_of_one_load_are_each_judged_before_and_after_the_plan() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=1.0)])
        put(bench, deny("uid = 1000"))
        first = bench.submit("slow", asker=Asker(USER))
        second = bench.submit("slow", asker=Asker(ROOT))
        await until(lambda: first.result is not None)
        third = bench.submit("slow", asker=Asker(USER))
        assert third.result is not None, "the plan is known"
        await until(lambda: second.result is not None)
        outcomes = [ticket.result.outcome for ticket in (first, second, third) if ticket.result]
        assert outcomes == [Outcome.DENIED, Outcome.LOADED, Outcome.DENIED]
        assert first.result is not None
        assert (first.result.status, first.result.modules) == (-errno.EPERM, ())
        bench.assert_all_answered_once()

    run(main())


def test_a_denied_load_is_joined_by_nobody() -> None:
    async def main() -> None:
        bench = Bench([Installed("m", latency=1.0)])
        put(bench, deny("uid = 1000"))
        denied = bench.submit("m", asker=Asker(USER))
        await until(lambda: denied.result is not None)
        assert (await bench.ask("m", asker=Asker(ROOT))).outcome is Outcome.LOADED
        assert [event["name"] for event in bench.events("load")] == ["m"], "a refused load is no event"
        bench.assert_all_answered_once()

    run(main())


def test_a_change_ends_who_waits_and_stops_the_load_before_its_next_module() -> None:
    async def main() -> None:
        bench = Bench([Installed("below", latency=5.0), Installed("above", depends=("below",))])
        tickets = [bench.submit("above", asker=Asker(who)) for who in (USER, ROOT)]
        await asyncio.sleep(1.0)
        put(bench, deny('module = "above"\nuid = 1000'))
        assert tickets[0].result is not None
        assert tickets[1].result is None, "root may still have it"
        put(bench, deny('module = "above"'))
        assert tickets[1].result is not None
        later = bench.submit("above", asker=Asker(ROOT))
        await until(lambda: not bench.broker.running())
        assert later.result is not None
        assert later.result.outcome is Outcome.DENIED
        assert list(bench.kernel.modules()) == ["below"]
        (load,) = bench.events("load")
        assert (load["outcome"], load["modules"]) == ("denied", ["below"])
        bench.assert_all_answered_once()

    run(main())


def test_a_load_whose_requester_gave_up_is_his_all_the_same() -> None:
    async def main() -> None:
        bench = Bench([Installed("below", latency=5.0), Installed("above", depends=("below",))])
        put(bench, deny("uid = 7"))
        early = bench.submit("above", asker=Asker(USER), timeout=0.0)
        late = bench.submit("below", asker=Asker(USER), timeout=1.0)
        await until(lambda: late.result is not None and early.result is not None)
        assert early.result is not None
        assert early.result.outcome is Outcome.TIMED_OUT
        put(bench, deny('module = "above"'))
        await until(lambda: not bench.broker.running())
        assert list(bench.kernel.modules()) == ["below"], "and is stopped in his absence"
        bench.assert_all_answered_once()

    run(main())


def test_taking_a_denial_back_lets_the_next_one_in() -> None:
    async def main() -> None:
        bench = Bench([Installed("m")])
        put(bench, deny('module = "m"'))
        assert (await bench.ask("m")).outcome is Outcome.DENIED
        put(bench, "")
        assert (await bench.ask("m")).outcome is Outcome.LOADED
        bench.assert_all_answered_once()

    run(main())


@pytest.mark.parametrize(("sealed", "rules"), [(True, ""), (False, deny("uid = 7"))])
def test_who_has_gone_gets_nothing_where_anything_is_denied(sealed: bool, rules: str) -> None:
    async def main() -> None:
        bench = Bench([Installed("m")])
        put(bench, rules)
        bench.broker.policy.seal(sealed)
        result = await bench.ask("m", asker=Asker(gone=True))
        assert result.outcome is Outcome.DENIED
        bench.broker.policy.seal(False)
        put(bench, '[[rule]]\naction = "deny"\nmode = "audit"\n')
        assert (await bench.ask("m", asker=Asker(gone=True))).outcome is Outcome.LOADED

    run(main())


def test_a_stranger_has_no_right_but_by_a_rule_for_him() -> None:
    async def main() -> None:
        bench = Bench([Installed("m"), Installed("n")])
        asker = Asker(USER, stranger=True)
        ticket = bench.submit("m", Source.API, asker=asker)
        await until(lambda: ticket.result is not None)
        assert ticket.no_right is True
        put(bench, '[[rule]]\nuid = 1000\nmodule = "m"\naction = "allow"\n')
        assert (await bench.ask("m", source=Source.API, asker=asker)).outcome is Outcome.LOADED
        assert (await bench.ask("n", source=Source.API, asker=asker)).outcome is Outcome.DENIED
        bench.assert_all_answered_once()

    run(main())


def test_a_thousand_waiters_and_a_hundred_changes_are_each_answered_once() -> None:
    async def main() -> None:
        bench = Bench([Installed(f"m{n}", latency=0.5) for n in range(20)])
        for n in range(1000):
            bench.submit(f"m{n % 20}", asker=Asker(Requester(uid=n % 10, privileged=False)))
        for n in range(100):
            put(bench, deny(f"uid = {n % 10}") + deny(f'module = "m{n % 20}"'))
            await asyncio.sleep(0.002)
        await until(lambda: not bench.broker.running())
        bench.assert_all_answered_once()
        outcomes = {event["outcome"] for event in bench.events("request")}
        assert outcomes <= {"denied", "loaded"}
        assert "denied" in outcomes

    run(main())
