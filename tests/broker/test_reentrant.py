"""S1 to S4 on the simulated kernel, in virtual time: any number at once, nested, shared, never stuck."""

from __future__ import annotations

import asyncio
import errno

import pytest

from kmodd.broker.deadlock import RunningLoad
from kmodd.broker.loader import Progress, Report
from kmodd.kernel.simulated import Installed
from kmodd.model import Outcome, Source
from support.bench import Bench
from support.virtual import Stuck, run


def chain(depth: int, **last: object) -> list[Installed]:
    return [Installed(f"nest_{n}", requests=(f"nest_{n + 1}",)) for n in range(depth)] + [
        Installed(f"nest_{depth}", **last)  # type: ignore[arg-type]
    ]


def test_s1_every_outcome_has_its_status() -> None:
    async def main() -> None:
        bench = Bench(
            [
                Installed("ok"),
                Installed("broken", error=errno.ENODEV),
                Installed("part", builtin=True),
                Installed("above", depends=("broken",)),
            ]
        )
        first = await bench.ask("ok")
        assert (first.outcome, first.status, first.modules) == (Outcome.LOADED, 0, ("ok",))
        again = await bench.ask("ok")
        assert (again.outcome, again.status, again.modules) == (Outcome.ALREADY_LIVE, 0, ())
        builtin = await bench.ask("part")
        assert (builtin.outcome, builtin.status) == (Outcome.BUILT_IN, 0)
        broken = await bench.ask("broken")
        assert (broken.outcome, broken.status) == (Outcome.FAILED, -errno.ENODEV)
        assert broken.error == "cannot load broken: No such device (ENODEV)"
        above = await bench.ask("above")
        assert above.error == "cannot load above: cannot load its dependency broken: No such device (ENODEV)"
        missing = await bench.ask("nothing")
        assert (missing.outcome, missing.status) == (Outcome.NOT_FOUND, 1)
        bench.assert_all_answered_once()

    run(main())


@pytest.mark.parametrize("depth", [1, 20, 500])
def test_s2_nested_requests_do_not_wait_for_each_other(depth: int) -> None:
    async def main() -> None:
        bench = Bench(chain(depth))
        result = await bench.ask("nest_0")
        assert result.outcome is Outcome.LOADED
        assert len(bench.kernel.modules()) == depth + 1
        bench.assert_all_answered_once()

    run(main())


class OneAtATime:
    """The stock kmod of 2.1.96: a single loader, and requests in a queue before it."""

    def __init__(self, inner: Bench) -> None:
        self._inner = inner
        self._turn = asyncio.Lock()

    async def load(self, name: str, progress: Progress) -> Report:
        async with self._turn:
            return await self._inner.loader.load(name, progress)


def test_s2_the_same_hangs_where_loads_are_served_one_at_a_time() -> None:
    async def main() -> None:
        inner = Bench(chain(2))
        bench = Bench(loader=OneAtATime(inner))
        inner.loader.request_module = bench.nested  # type: ignore[attr-defined]
        ticket = bench.submit("nest_0")
        done = asyncio.get_running_loop().create_future()
        bench.recorder.subscribe(lambda _event: ticket.result and done.set_result(None))
        await asyncio.wait_for(done, 3600)

    with pytest.raises((Stuck, TimeoutError)):
        run(main())


def test_s2_a_module_that_asks_for_itself_is_told_deadlock() -> None:
    async def main() -> None:
        bench = Bench([Installed("self", requests=("self",), latency=1.0)])
        result = await bench.ask("self")
        assert result.outcome is Outcome.LOADED
        nested = [event for event in bench.events("request") if event["outcome"] == "deadlock"]
        assert [event["status"] for event in nested] == [-errno.EDEADLK]
        assert nested[0]["coalesced_with"] == bench.events("request")[-1]["id"]
        bench.assert_all_answered_once()

    run(main())


def test_s2_a_cycle_of_modules_is_broken_where_it_closes() -> None:
    async def main() -> None:
        bench = Bench(
            [
                Installed("a", requests=("b",)),
                Installed("b", requests=("c",)),
                Installed("c", requests=("a",)),
            ]
        )
        assert (await bench.ask("a")).outcome is Outcome.LOADED
        outcomes = {
            event["name"]: event["outcome"]
            for event in bench.events("request")
            if event["source"] == "kernel"
        }
        assert sorted(bench.kernel.modules()) == ["a", "b", "c"]
        assert [event["name"] for event in bench.events("request") if event["outcome"] == "deadlock"] == ["a"]
        assert outcomes["b"] == "loaded"
        bench.assert_all_answered_once()

    run(main())


def test_s2_a_module_that_asks_for_an_alias_of_itself_is_told_deadlock() -> None:
    async def main() -> None:
        bench = Bench([Installed("self", aliases=("other-name",), requests=("other-name",))])
        assert (await bench.ask("self")).outcome is Outcome.LOADED
        assert [e["name"] for e in bench.events("request") if e["outcome"] == "deadlock"] == ["other-name"]
        bench.assert_all_answered_once()

    run(main())


def test_s2_others_who_share_a_load_are_not_told_deadlock() -> None:
    async def main() -> None:
        bench = Bench([Installed("self", requests=("self",), latency=5.0)])
        for _ in range(20):
            bench.submit("self")
        await asyncio.sleep(10)
        bench.submit("self")
        await asyncio.sleep(10)
        outcomes = sorted(event["outcome"] for event in bench.events("request"))
        assert outcomes == ["already-live"] + ["deadlock"] + ["loaded"] * 20
        bench.assert_all_answered_once()

    run(main())


def test_s3_a_load_that_takes_hours_delays_nobody() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=7200.0), Installed("quick")])
        slow = bench.submit("slow")
        result = await bench.ask("quick")
        assert result.outcome is Outcome.LOADED
        assert asyncio.get_running_loop().time() < 1
        assert slow.result is None
        await asyncio.sleep(7201)
        bench.assert_all_answered_once()

    run(main())


def test_s4_ten_thousand_at_once_are_each_answered_once() -> None:
    async def main() -> None:
        modules = [
            Installed(f"m{n}", latency=n % 7, error=errno.EIO if n % 11 == 0 else 0) for n in range(500)
        ]
        bench = Bench(modules)
        for n in range(10_000):
            bench.submit(f"m{n % 500}" if n % 13 else "nothing")
        await asyncio.sleep(10)
        bench.assert_all_answered_once()
        assert bench.broker.requests_total == 10_000
        assert bench.broker.loads_total <= 501

    run(main())


def test_requests_for_one_name_share_a_load_and_its_failure_is_not_remembered() -> None:
    async def main() -> None:
        bench = Bench([Installed("bad", latency=1.0, error=errno.ENXIO)])
        first, second = bench.submit("bad"), bench.submit("bad")
        await asyncio.sleep(2)
        assert bench.broker.loads_total == 1
        assert second.result is not None
        assert second.result.coalesced_with == first.request.id
        assert second.result.status == -errno.ENXIO
        third = await bench.ask("bad")
        assert bench.broker.loads_total == 2
        assert third.coalesced_with is None
        bench.assert_all_answered_once()

    run(main())


def test_a_waiter_leaves_and_the_load_goes_on() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=5.0)])
        leaver, stayer = bench.submit("slow"), bench.submit("slow")
        bench.broker.leave(leaver)
        await asyncio.sleep(6)
        assert bench.statuses.pop(leaver.request.id) == []
        assert bench.results.pop(leaver.request.id) == []
        assert stayer.result is not None
        assert stayer.result.outcome is Outcome.LOADED
        assert {event["id"] for event in bench.events("request")} == {leaver.request.id, stayer.request.id}
        bench.assert_all_answered_once()

    run(main())


def test_load_timeout_tells_the_requester_and_the_load_goes_on() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=60.0)], load_timeout=2)
        result = await bench.ask("slow")
        assert (result.outcome, result.status) == (Outcome.TIMED_OUT, -errno.ETIMEDOUT)
        assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.1)
        assert bench.broker.running()
        await asyncio.sleep(60)
        assert [event["outcome"] for event in bench.events("load")] == ["loaded"]
        bench.assert_all_answered_once()

    run(main())


def test_s12_a_changed_load_timeout_holds_for_those_who_wait() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=60.0)])
        waiting = bench.submit("slow")
        await asyncio.sleep(5)
        bench.settings.set("load_timeout", 10)
        await asyncio.sleep(6)
        assert waiting.result is not None
        assert waiting.result.outcome is Outcome.TIMED_OUT
        await asyncio.sleep(60)
        bench.assert_all_answered_once()

    run(main())


def test_a_requesters_own_timeout_is_the_shorter_of_the_two() -> None:
    async def main() -> None:
        bench = Bench([Installed("slow", latency=60.0)], load_timeout=30)
        await bench.ask("slow", source=Source.API, timeout=1.5)
        assert asyncio.get_running_loop().time() < 2
        await asyncio.sleep(60)
        bench.assert_all_answered_once()

    run(main())


@pytest.mark.parametrize(
    "name", [b"", b"-x", b"/etc/passwd", b"./x", b"a b", b"a\nb", b"\xff", b"x" * 56, b"a\0b"]
)
def test_s7_a_malformed_name_is_refused_and_recorded_escaped(name: bytes) -> None:
    async def main() -> None:
        bench = Bench([Installed("x" * 55)])
        result = await bench.ask(name, longest=55)
        assert (result.outcome, result.status) == (Outcome.FAILED, -errno.EINVAL)
        [event] = bench.events("request")
        assert event["name"].isprintable()
        assert " " not in event["name"]
        assert bench.broker.loads_total == 0
        assert (await bench.ask("x" * 55, longest=55)).outcome is Outcome.LOADED
        bench.assert_all_answered_once()

    run(main())


def test_a_loader_that_breaks_costs_nobody_their_answer() -> None:
    class Broken:
        async def load(self, name: str, progress: Progress) -> Report:
            raise ZeroDivisionError(name)

        def running(self) -> list[RunningLoad]:
            return []

    async def main() -> None:
        bench = Bench(loader=Broken())
        result = await bench.ask("x")
        assert (result.outcome, result.status) == (Outcome.FAILED, -errno.EIO)
        bench.assert_all_answered_once()

    run(main())


def test_stop_lets_loads_finish_then_answers_whoever_still_waits() -> None:
    async def main() -> None:
        bench = Bench([Installed("short", latency=5.0), Installed("long", latency=500.0)])
        short, long = bench.submit("short"), bench.submit("long")
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(bench.broker.stop(10))
        await asyncio.sleep(1)
        refused = await bench.ask("late")
        assert refused.status == -errno.ESHUTDOWN
        await stopping
        assert short.result is not None
        assert short.result.outcome is Outcome.LOADED
        assert long.result is not None
        assert long.result.status == -errno.ESHUTDOWN
        assert asyncio.get_running_loop().time() < 12
        for statuses in bench.statuses.values():
            assert len(statuses) == 1

    run(main())


def test_an_idle_broker_has_no_timer() -> None:
    async def main() -> None:
        bench = Bench([Installed("x", requests=("x",))])
        await bench.ask("x")
        await asyncio.sleep(5)
        loop = asyncio.get_running_loop()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []  # type: ignore[attr-defined]

    run(main())
