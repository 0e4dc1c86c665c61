"""Starts daemons for the tests, and looks at how they end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from daemon.daemon_harness import MODULES, Daemon


@pytest.fixture
def make() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that are not started yet."""
    assert os.geteuid() == 0, "the daemon takes requests from root, and other users are played"
    made: list[Daemon] = []

    def factory(modules: str = MODULES, settings: str = "stop_timeout = 0\n") -> Daemon:
        made.append(Daemon(modules, settings))
        return made[-1]

    yield factory
    problems = []
    for daemon in made:
        try:
            daemon.clean()
        except AssertionError as err:
            problems.append(str(err))
    assert not problems, "\n".join(problems)


@pytest.fixture
def daemon(make: Callable[..., Daemon]) -> Daemon:
    """A daemon that serves; it must end with 0 when the test has ended."""
    return make().start()
