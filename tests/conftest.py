"""What every test shares: in CI a test that is skipped has failed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

KERNEL = Path(__file__).parents[1] / ".cache/kernels/current"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {call.excinfo and call.excinfo.value}"
    return report


settings.register_profile("repeatable", derandomize=True, database=None)


def pytest_configure(config: pytest.Config) -> None:
    # The same examples in every run; `--hypothesis-profile=default` looks for new ones.
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("repeatable")
    if (KERNEL / "boot").is_dir():  # as make has it, for a pytest that is run by hand
        os.environ.setdefault("KMODD_LAB_KERNELS", str(KERNEL.resolve()))
    # A shell starts its background jobs with these ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # meson and ninja are installed beside this Python; a virtual environment need not be active.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}"
