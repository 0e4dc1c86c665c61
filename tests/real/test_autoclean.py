"""Autoclean on a real kernel: what came by itself and is unused goes, and nothing else, while all else goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real

FAILED = 256  # what request_module() returns where its helper ends with 1
MANY = [f"kmodd_many_{n:02}" for n in range(60)]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=4, timeout=500)) as guest:
        assert guest.run("modprobe", "kmodd_ask").returncode == 0
        yield guest


@pytest.fixture(scope="module")
def uml() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", timeout=180)) as guest:
        yield guest


@pytest.fixture
def call(guest: Guest) -> Iterator[Call]:
    made = caller(guest)
    made("tune", unload_delay=0, unload_delays=[], keep=[])
    yield made
    made("tune", unload_delay=0, unload_delays=[], keep=[])


@pytest.fixture(params=["uml", "guest"])
def any_kernel(request: pytest.FixtureRequest) -> Iterator[tuple[Call, str]]:
    """Where the kernel counts uses, and where they are sampled."""
    made = caller(request.getfixturevalue(request.param))
    made("tune", unload_delay=0, unload_delays=[], keep=[])
    yield made, {"uml": "sampled", "guest": "counted"}[request.param]
    made("tune", unload_delay=0)


def test_s9_what_the_kernel_asked_for_goes_and_nothing_else(any_kernel: tuple[Call, str]) -> None:
    call, uses = any_kernel
    before = call("last_event")
    call("api", method="RequestModule", name="nls_iso8859_2")
    call("result = insmod('nls_iso8859_3')")
    call("marked_by_modprobe", name="nls_iso8859_4")
    # By the kernel: a filesystem with what it needs, and one that is mounted.
    call(
        "result = [mount('nfs'), mount('minix'), subprocess.run(['mount', '-t', 'tmpfs', 'x', '/mnt']).returncode]"
    )
    shown = call("result = api('Autoclean')['result']")
    assert shown["uses"] == uses
    ours = {each["module"] for each in shown["modules"]}
    assert {"minix", "nfs", "sunrpc", "nls_iso8859_4"} <= ours
    assert not ours & {"nls_iso8859_2", "nls_iso8859_3", "overlay", "kmodd_ask"}
    assert shown["modules"][-1]["goes"] is False
    call("tune", unload_delay=1)
    call("gone", names=sorted(ours))
    told = call("unloads", since=before)
    assert told.keys() == ours
    assert all(reason.startswith("nobody has used it for ") for reason in told.values())
    order = list(told)
    assert order.index("nfs") < order.index("sunrpc"), "what holds goes first"
    live = call("live")
    assert {"nls_iso8859_2", "nls_iso8859_3"} <= set(live)
    account = call("result = api('GetStatus')['status']['autoclean']")
    assert account["unloaded"] >= len(ours)
    assert account["size"] > 100_000
    call("result = api('RemoveModule', name='nls_iso8859_2'), by_hand('rmmod', 'nls_iso8859_3')")


def test_a_use_between_two_passes_counts(call: Call) -> None:
    call("tune", unload_delay=1)
    found = call("used_between_passes", name="minix", rounds=6)
    assert all(found["kept"])
    assert found["passes"] >= 6


def test_what_is_in_use_stays(call: Call) -> None:
    source = """
tune(unload_delay=1)
held = socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW)
passes(4)
result = [verdicts()["can_raw"], verdicts()["can"], "can_raw" in live()]
held.close()
gone(["can_raw", "can"])
"""
    raw, can, live = call(source)
    assert live
    assert (raw["goes"], raw["reason"]) == (False, "it has 1 user")
    assert (can["goes"], can["reason"]) == (False, "it is used by can_raw")


def test_who_opens_its_device_file_has_it_come_again(call: Call) -> None:
    """The file is the kernel's own where the module came first, and went with it."""
    source = """
asked = ask("fuse")
made = os.stat("/dev/fuse")
tune(unload_delay=1)
gone(["fuse"])
passes(0)
again = until(lambda: os.stat("/dev/fuse"), FileNotFoundError)
held = os.open("/dev/fuse", os.O_RDWR)
result = [asked, made.st_rdev == again.st_rdev, made.st_mode == again.st_mode, "fuse" in live()]
os.close(held)
"""
    assert call(source) == [0, True, True, True]


def test_keep_and_delays_of_single_modules(call: Call) -> None:
    call("result = [ask(name) for name in ('kmodd_many_10', 'kmodd_many_11', 'kmodd_many_12')]")
    call("tune", unload_delays=["kmodd-many-11=0"], keep=["*_12"], unload_delay=1)
    call("gone", names=["kmodd_many_10"])
    call("passes", count=0)
    found = call("verdicts")
    assert found["kmodd_many_11"]["reason"] == "autoclean is off for it (unload_delay, unload_delays)"
    assert found["kmodd_many_12"]["reason"] == "it is kept: the setting keep names it"
    call("tune", unload_delays=[], keep=[])
    call("gone", names=["kmodd_many_11", "kmodd_many_12"])


def test_after_a_crash_it_knows_what_it_may_clean_and_what_is_not_ours_any_more(call: Call) -> None:
    source = """
names = ["kmodd_many_20", "kmodd_many_21", "kmodd_many_22"]
answers = [ask(name) for name in names]
api("RequestModule", name="kmodd_many_22")  # by hand: an administrator's from now on
written()
stop_daemon(signal.SIGKILL)
by_hand("rmmod", "kmodd_many_21")
insmod("kmodd_many_21")
start_daemon()
before = last_event()
known = until(lambda: {"kmodd_many_20": verdicts()["kmodd_many_20"]}, KeyError)
tune(unload_delay=1)
gone(["kmodd_many_20"])
passes(2) if verdicts() else None
result = {"answers": answers, "live": live(), "known": sorted(verdicts()), "unloads": unloads(before)}
"""
    found = call(source)
    assert found["answers"] == [0, 0, 0]
    assert {"kmodd_many_21", "kmodd_many_22"} <= set(found["live"])
    assert found["unloads"].keys() == {"kmodd_many_20"}
    call("result = unload(['kmodd_many_21', 'kmodd_many_22'])")


def test_an_exit_that_hangs_is_told_and_holds_up_nobody_else(call: Call) -> None:
    call("result = ask('kmodd_sleep')")
    found = call("exit_that_hangs", name="kmodd_sleep", others_names=["kmodd_many_30", "kmodd_dep_b"])
    assert found["told"] == ["kmodd_sleep"]
    assert found["answers"] == [0, 0]
    assert found["still"], "they have come and gone while it was being unloaded"
    assert found["meanwhile"] == FAILED, "at once, and not in one of the kernel's 50 places until it ends"
    assert (found["again"], found["live"]) == (0, True)
    call("gone", names=["kmodd_sleep"])


def test_s10_two_thousand_requests_for_what_is_being_unloaded_all_succeed(call: Call) -> None:
    call("tune", unload_delay=0.05)
    before = call("result = api('GetStatus')['status']['autoclean']['unloaded']")
    unloaded = waited = 0
    # How many fall idle meanwhile is a matter of the machine: it is asked again until enough have.
    for _turn in range(5):
        found = call("storm_while_unloading", names=MANY[:40], processes=4, each=500, timeout=400)
        assert found["failed"] == [0] * 4
        assert found["requests"] == 2000
        assert set(found["outcomes"]) <= {"loaded", "already-live"}
        assert (found["failures"], found["hanging"]) == (0, [])
        unloaded, waited = found["unloaded"] - before, found["waited"]
        if unloaded > 10 and waited:
            break
    assert unloaded > 10, "they were unloaded meanwhile, again and again"
    assert waited, "and some were asked for in that very moment"
    call("gone", names=MANY)


def test_the_counting_ends_with_the_setting_and_with_the_daemon(call: Call) -> None:
    assert "kmodd-uses" in call("instances")
    call("tune", tracing=False)
    assert call("instances") == [], "it returns once the kernel is as the setting says"
    call("uses_are", how="sampled")
    call("tune", tracing=True)
    assert call("instances") == ["kmodd", "kmodd-loads", "kmodd-uses"]
    call("uses_are", how="counted")


def test_the_kernel_log_is_clean(guest: Guest, uml: Guest) -> None:
    for log in (guest.dmesg(), uml.dmesg()):
        for word in ("BUG:", "WARNING:", "Oops", "blocked for more than", "Call Trace"):
            assert word not in log, log[-4000:]
