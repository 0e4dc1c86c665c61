"""What the steps share: the page, the log, and the checks that stop a step that goes wrong."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.lab.demo.follower import Follower, Request
from kmodd.lab.demo.page import Page

WORK = Path("/run/kmodd-demo")
PATIENCE = 30.0
"""Seconds for something that takes a few at most."""


class StepFailed(Exception):
    """Something was not as the page says, in a sentence."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the demo."""

    title: str
    watch: str
    """What to watch for."""
    run: Callable[["Demo"], str]


@dataclass(slots=True)
class Demo:
    """What the steps share, and what they leave for the summary."""

    page: Page = field(default_factory=Page)
    follower: Follower = field(init=False)
    outer: str | None = None
    """Requests of the kernel that come in while this one is served are nested."""
    outer_served: Request | None = None
    nested: list[Request] = field(default_factory=list)
    fallbacks: int = 0

    def __post_init__(self) -> None:
        self.follower = Follower(self._show)

    def begin(self, number: int, step: Step) -> None:
        """Begin a step."""
        WORK.mkdir(exist_ok=True)
        self.outer = self.outer_served = None
        self.page.step(number, step.title, step.watch)

    def _show(self, request: Request) -> None:
        nested = self._is_nested(request)
        if nested:
            self.nested.append(request)
        elif request.name == self.outer:
            self.outer_served = request
        self.page.request(request, nested=nested)

    def _is_nested(self, request: Request) -> bool:
        if self.outer is None or request.source != "kernel":
            return False
        outer = self.outer_served
        return outer is None or outer.begun <= request.begun < outer.ended

    def told(self, since: int) -> list[Request]:
        """All requests from number `since` on, complete."""
        require(self.follower.settle(), "kmodd did not tell the end of every request in its log")
        return self.follower.requests[since:]


def require(truth: bool, otherwise: str) -> None:
    """Go on only with what is true."""
    if not truth:
        raise StepFailed(otherwise)


def live_modules() -> list[str]:
    """Names of the modules that are live, the one that came first first."""
    lines = Path("/proc/modules").read_text().splitlines()
    return [line.split()[0] for line in reversed(lines) if line.split()[4] == "Live"]


def require_live(modules: Iterable[str]) -> None:
    """All of these are in the kernel and ready."""
    missing = set(modules) - set(live_modules())
    require(not missing, f"not live in /proc/modules: {' '.join(sorted(missing))}")


def require_outcomes(told: Sequence[Request], expected: dict[str, str]) -> None:
    """Each of these names was asked for, and each time with that outcome."""
    for name, outcome in expected.items():
        had = {request.outcome for request in told if request.name == name}
        require(bool(had), f"nobody asked for {name}")
        require(had == {outcome}, f"{name} is {', '.join(sorted(had))} instead of {outcome}")
