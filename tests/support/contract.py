"""What any kernel does: the contract that the simulated one and Linux both pass (interface.Kernel).

Each check gets a kernel, and how it names the file of a test module (a path for Linux). The modules are
those of tests/modules; the simulated kernel has them installed with the same behaviour. Runs in a guest.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from kmodd.kernel.interface import Kernel, ModuleState
from kmodd.kernel.simulated import Installed

Named = Callable[[str], str]

INSTALLED = (
    Installed("kmodd_dep_a"),
    Installed("kmodd_dep_b", depends=("kmodd_dep_a",)),
    Installed("kmodd_fail", error=errno.ENODEV),
    Installed("kmodd_noexit", permanent=True),
    Installed("kmodd_sleep", latency=0.5),
    Installed("kmodd_many_00"),
)


def errno_of(work: Callable[[], object]) -> int:
    """Return the errno that `work` raises, 0 where it raises none."""
    try:
        work()
    except OSError as err:
        return err.errno or -1
    return 0


def until(look: Callable[[], bool]) -> None:
    """Return once `look` holds."""
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_a_module_comes_and_goes(kernel: Kernel, named: Named) -> None:
    assert "kmodd_many_00" not in kernel.modules()
    kernel.load(named("kmodd_many_00"))
    module = kernel.modules()["kmodd_many_00"]
    assert (module.state, module.refcount, module.holders) == (ModuleState.LIVE, 0, ())
    assert module.size > 0
    assert not module.permanent
    assert kernel.holders()["kmodd_many_00"] == ()
    kernel.unload("kmodd_many_00")
    assert "kmodd_many_00" not in kernel.modules()


def check_what_is_live_exists_already(kernel: Kernel, named: Named) -> None:
    kernel.load(named("kmodd_many_00"))
    assert errno_of(lambda: kernel.load(named("kmodd_many_00"))) == errno.EEXIST
    kernel.unload("kmodd_many_00")


def check_what_is_not_there_cannot_be_loaded_or_unloaded(kernel: Kernel, named: Named) -> None:
    assert errno_of(lambda: kernel.load(named("kmodd_not_installed"))) == errno.ENOENT
    assert errno_of(lambda: kernel.unload("kmodd_many_00")) == errno.ENOENT


def check_a_dependency_must_be_live_and_is_held(kernel: Kernel, named: Named) -> None:
    assert errno_of(lambda: kernel.load(named("kmodd_dep_b"))) == errno.ENOENT
    kernel.load(named("kmodd_dep_a"))
    kernel.load(named("kmodd_dep_b"))
    modules = kernel.modules()
    assert modules["kmodd_dep_a"].holders == ("kmodd_dep_b",)
    assert modules["kmodd_dep_a"].refcount == 1
    names = list(modules)
    assert names.index("kmodd_dep_a") < names.index("kmodd_dep_b")
    assert errno_of(lambda: kernel.unload("kmodd_dep_a")) == errno.EWOULDBLOCK
    kernel.unload("kmodd_dep_b")
    kernel.unload("kmodd_dep_a")


def check_an_init_that_fails_tells_its_errno_and_leaves_nothing(kernel: Kernel, named: Named) -> None:
    assert errno_of(lambda: kernel.load(named("kmodd_fail"))) == errno.ENODEV
    assert "kmodd_fail" not in kernel.modules()
    assert errno_of(lambda: kernel.load(named("kmodd_fail"))) == errno.ENODEV


def check_a_module_is_coming_until_its_init_returns(kernel: Kernel, named: Named) -> None:
    results: list[int] = []
    first = threading.Thread(
        target=lambda: results.append(errno_of(lambda: kernel.load(named("kmodd_sleep"))))
    )
    first.start()
    until(lambda: "kmodd_sleep" in kernel.modules())
    assert kernel.modules()["kmodd_sleep"].state is ModuleState.COMING
    assert "kmodd_sleep" not in kernel.holders()
    assert errno_of(lambda: kernel.unload("kmodd_sleep")) == errno.EBUSY
    # A second load waits for the first and then finds the module live.
    second = errno_of(lambda: kernel.load(named("kmodd_sleep")))
    assert kernel.modules()["kmodd_sleep"].state is ModuleState.LIVE
    first.join()
    assert (results, second) == ([0], errno.EEXIST)
    kernel.unload("kmodd_sleep")


def check_each_coming_of_a_module_has_an_identity_of_its_own(kernel: Kernel, named: Named) -> None:
    assert kernel.identity("kmodd_many_00") is None
    kernel.load(named("kmodd_many_00"))
    first = kernel.identity("kmodd_many_00")
    assert first is not None
    assert kernel.identity("kmodd_many_00") == first
    kernel.unload("kmodd_many_00")
    kernel.load(named("kmodd_many_00"))
    assert kernel.identity("kmodd_many_00") not in {None, first}
    kernel.unload("kmodd_many_00")


def check_nobody_is_blocked_where_nobody_asks(kernel: Kernel, named: Named) -> None:
    assert kernel.blocked_tasks(set()) == []


def check_z_a_permanent_module_stays(kernel: Kernel, named: Named) -> None:
    kernel.load(named("kmodd_noexit"))
    assert kernel.modules()["kmodd_noexit"].permanent
    assert errno_of(lambda: kernel.unload("kmodd_noexit")) == errno.EBUSY


CHECKS: dict[str, Callable[[Kernel, Named], None]] = {
    name.removeprefix("check_"): check
    for name, check in sorted(globals().items())
    if name.startswith("check_")
}


def run_all(kernel: Kernel, named: Named) -> dict[str, str]:
    """Run every check; return what went wrong, by name."""
    import traceback  # noqa: PLC0415

    wrong = {}
    for name, check in CHECKS.items():
        try:
            check(kernel, named)
        except Exception:  # noqa: BLE001 - it is told, for every check
            wrong[name] = traceback.format_exc()
    return wrong
