"""Whatever requests, failures, delays, cancellations and stops come: nothing is lost, answered twice, left."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.broker.tickets import Ticket
from kmodd.kernel.simulated import Installed
from kmodd.model import Source
from support.bench import Bench
from support.virtual import run

NAMES = [f"m{n}" for n in range(8)]
ALIASES = [f"alias:{n}" for n in range(4)]
ASKED = st.sampled_from([*NAMES, *ALIASES, "missing", "bad name"])


@dataclass(frozen=True)
class Step:
    """One thing that happens."""

    kind: str
    name: str = ""
    amount: float = 0.0
    source: Source = field(default=Source.KERNEL)


def modules() -> st.SearchStrategy[list[Installed]]:
    def one(index: int) -> st.SearchStrategy[Installed]:
        lower = st.sampled_from(NAMES[:index]) if index else st.nothing()
        return st.builds(
            Installed,
            name=st.just(NAMES[index]),
            depends=st.lists(lower, max_size=2, unique=True).map(tuple) if index else st.just(()),
            aliases=st.lists(st.sampled_from(ALIASES), max_size=2, unique=True).map(tuple),
            latency=st.sampled_from([0.0, 0.0, 0.01, 1.0, 90.0]),
            error=st.sampled_from([0, 0, 0, errno.ENODEV, errno.EIO]),
            # Any name at all: nesting, cycles, oneself, what does not exist.
            requests=st.lists(st.sampled_from([*NAMES, *ALIASES, "missing"]), max_size=2).map(tuple),
            builtin=st.booleans().map(lambda b: b and index % 4 == 3),
        )

    def sane(module: Installed) -> Installed:
        # What fails and asks is initialised again by each request for it, and asks again: exponential.
        return replace(module, requests=()) if module.error else module

    return st.tuples(*(one(index).map(sane) for index in range(len(NAMES)))).map(list)


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.just("ask"), ASKED, st.sampled_from([0.0, 0.5, 30.0]), st.sampled_from(Source)),
        st.builds(Step, st.just("wait"), amount=st.sampled_from([0.0, 0.01, 1.0, 40.0])),
        st.builds(Step, st.just("leave"), amount=st.integers(0, 50).map(float)),
        st.builds(Step, st.just("tune"), amount=st.sampled_from([0.0, 0.5, 60.0])),
        st.builds(Step, st.just("unload"), st.sampled_from(NAMES)),
    ),
    max_size=40,
)


async def _play(bench: Bench, steps: list[Step]) -> None:
    tickets: list[Ticket] = []
    for step in steps:
        if step.kind == "ask":
            tickets.append(bench.submit(step.name, step.source, timeout=step.amount or None))
        elif step.kind == "wait":
            await asyncio.sleep(step.amount)
        elif step.kind == "tune":
            bench.settings.set("load_timeout", step.amount)
        elif step.kind == "unload":
            try:
                bench.kernel.unload(step.name)
            except OSError as err:
                assert err.errno in {errno.ENOENT, errno.EWOULDBLOCK, errno.EBUSY}
        elif tickets:
            ticket = tickets[int(step.amount) % len(tickets)]
            bench.broker.leave(ticket)
            # One that has left before it was told is told nothing; one that left later has been told.
            if ticket.result is None:
                assert bench.results.pop(ticket.request.id, []) == []
                bench.statuses.pop(ticket.request.id, None)


@settings(max_examples=200, deadline=None)
@given(installed=modules(), steps=STEPS)
def test_everything_ends_by_itself_and_is_answered_once(
    installed: list[Installed], steps: list[Step]
) -> None:
    async def main() -> None:
        bench = Bench(installed)
        await _play(bench, steps)
        await asyncio.sleep(10_000)
        bench.assert_all_answered_once()
        live = bench.kernel.modules()
        for event in bench.events("load"):
            assert set(event["modules"]) <= set(NAMES)
        assert all(not installed[NAMES.index(name)].error for name in live)

    run(main())


@settings(max_examples=100, deadline=None)
@given(installed=modules(), steps=STEPS, limit=st.sampled_from([0.0, 1.0, 200.0]))
def test_stop_at_any_moment_answers_everybody(
    installed: list[Installed], steps: list[Step], limit: float
) -> None:
    async def main() -> None:
        bench = Bench(installed)
        await _play(bench, steps)
        await bench.broker.stop(limit)
        assert not bench.broker.waiting()
        for number, statuses in bench.statuses.items():
            assert len(statuses) == 1
            assert len(bench.results[number]) == 1
        recorded = [event["id"] for event in bench.events("request")]
        assert len(recorded) == len(set(recorded))

    run(main())
