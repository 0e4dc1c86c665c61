"""On User-mode Linux, one processor: what modprobe finds itself in, the fallback, PID 1's root, the log."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kmodd.lab import Guest
from support.guests import Call

pytestmark = pytest.mark.real


def test_s15_there_is_one_processor(uml: Guest) -> None:
    assert uml.run("nproc").stdout == "1\n"


def test_s1_real_requests_of_the_kernel_are_answered_truly(in_uml: Call) -> None:
    before = in_uml("last_event")
    assert in_uml("mount", kind="nosuchfs") == errno.ENODEV
    assert in_uml("mount", kind="minix") != errno.ENODEV
    in_uml("open_socket", family=9)
    assert {"minix", "x25"} <= set(in_uml("live"))
    told = in_uml("events_are", count=3, since=before)
    assert [(event["name"], event["outcome"], event["modules"]) for event in told] == [
        ("fs-nosuchfs", "not-found", []),
        ("fs-minix", "loaded", ["minix"]),
        ("net-pf-9", "loaded", ["x25"]),
    ]
    words = (
        "not found in directory" if in_uml("loader") else "no module of that name or alias is installed for"
    )
    assert words in told[0]["error"]


def test_s2_dm_crypt_asks_while_it_loads(in_uml: Call) -> None:
    before = in_uml("last_event")
    result = in_uml("api", method="RequestModule", name="dm_crypt")["result"]
    assert result["outcome"] == "loaded"
    assert result["modules"][-1] == "dm_crypt"
    told = in_uml("events", since=before)
    nested = {event["name"]: event for event in told if event["source"] == "kernel"}
    assert "crypto-cbc(aes)" in nested
    outer = next(event for event in told if event["name"] == "dm_crypt")
    assert outer["time"] < nested["crypto-cbc(aes)"]["time"]
    modules = [module for event in told for module in event["modules"]]
    assert len(modules) == len(set(modules))


def fields(lines: list[str], key: str) -> list[str]:
    return [line.partition(":")[2] for line in lines if line.startswith(f"{key}:")]


@pytest.fixture(scope="module")
def story(uml: Guest) -> dict[str, Any]:
    from support.guests import caller  # noqa: PLC0415

    found: dict[str, Any] = caller(uml)("recorded", name="x;touch$IFS/run/touched")
    return found


def test_s5_modprobe_runs_in_a_session_of_its_own_with_clean_signals(story: dict[str, Any]) -> None:
    [stat] = fields(story["lines"], "stat")
    pid = int(stat.split()[0])
    parent, group, session = (int(field) for field in stat.rpartition(")")[2].split()[1:4])
    assert (group, session) == (pid, pid)
    assert parent == story["daemon"]
    assert fields(story["lines"], "sigBlk") == ["0000000000000000"]
    # SIGPIPE stays ignored, and glibc's posix_spawn() leaves the two that it keeps for itself (32 and 33).
    assert int(fields(story["lines"], "sigIgn")[0], 16) & ~0x180001000 == 0


def test_s5_loader_threads_are_named_and_block_all_signals(in_uml: Call) -> None:
    source = """
def threads():
    found = {}
    for task in Path(f"/proc/{daemon_pid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            status = (task / "status").read_text()
            found[(task / "comm").read_text().strip()] = status.partition("SigBlk:")[2].split()[0]
    return found
def loading():
    found = threads()
    found["kmod_loader"]
    return found
result = mount_while("minix", lambda: until(loading, KeyError))["seen"]
"""
    seen = in_uml(source)
    # All but SIGKILL and SIGSTOP, which cannot be blocked, and the two that the C library keeps (32, 33).
    assert int(seen["kmod_loader"], 16) & ~0x180040100 == 0xFFFFFFFFFFFFFFFF & ~0x180040100


def test_s6_modprobe_gets_path_arguments_and_environment_and_nothing_else(story: dict[str, Any]) -> None:
    assert fields(story["lines"], "arg") == ["-s", "-q", "--", "fs-x;touch$IFS/run/touched"]
    assert sorted(fields(story["lines"], "env")) == [
        "HOME=/",
        "PATH=/sbin:/usr/sbin:/bin:/usr/bin",
        "TERM=linux",
    ]
    files = dict(item.split("=", 1) for item in fields(story["lines"], "fd"))
    assert files.pop("0") == "/dev/null"
    assert files.pop("1").startswith(("pipe:", "/run/recorded"))
    assert files.pop("2").startswith("pipe:")
    # What is left is the shell's own: its script, and what it saved for the redirection.
    assert all(value == "/run/recorder" or value.startswith("pipe:") for value in files.values()), files


def test_s6_its_output_is_in_the_event_and_its_status_is_told(story: dict[str, Any], in_uml: Call) -> None:
    event = story["event"]
    assert (event["outcome"], event["status"]) == ("failed", 3)
    assert event["error"].endswith("exit status 3: first line; second\\x1b[31m line")
    assert story["result"] == errno.ENODEV
    assert not in_uml("result = Path('/run/touched').exists()")


@pytest.mark.parametrize(
    ("path", "number"),
    [("/nonexistent/modprobe", errno.ENOENT), ("/etc/passwd", errno.EACCES), ("/run", errno.EACCES)],
)
def test_s8_a_modprobe_that_cannot_be_started_is_told_with_path_name_and_errno(
    in_uml: Call, path: str, number: int
) -> None:
    found = in_uml("with_modprobe", path=path, name="anyfs")
    assert found["result"] == errno.ENODEV
    assert (found["api"]["error"], found["api"]["status"]) == (
        f"cannot load anyfs: cannot run {path}: {_words(number)}",
        -number,
    )
    assert [event["status"] for event in found["events"]] == [-number, -number]


def _words(number: int) -> str:
    return {errno.ENOENT: "No such file or directory (ENOENT)", errno.EACCES: "Permission denied (EACCES)"}[
        number
    ]


def test_s12_a_setting_changes_what_the_next_load_does(in_uml: Call) -> None:
    before = in_uml("last_event")
    source = """
tune(modprobe_path=script("/run/args", 'echo "$@" >&2; exit 9'), modprobe_args=["-v", "x y"])
first = mount("somefs")
tune(modprobe_path=loader(), modprobe_args=["-s", "-q", "--"])
result = events_are(1, before)
"""
    [event] = in_uml(source, before=before)
    assert event["error"].endswith("exit status 9: -v x y fs-somefs")


def test_a_blacklisted_alias_is_not_told_as_success(in_uml: Call) -> None:
    before = in_uml("last_event")
    source = """
Path("/etc/modprobe.d/deny.conf").write_text("blacklist minix\\ninstall romfs /bin/true\\n")
unload(["minix", "romfs"])
mount("minix"), mount("romfs")
os.unlink("/etc/modprobe.d/deny.conf")
result = events_are(2, before)
"""
    told = in_uml(source, before=before)
    assert [(event["outcome"], event["modules"]) for event in told] == [("denied", []), ("denied", [])]


def test_s13_loads_are_made_from_pid_1s_root_and_working_directory(in_uml: Call) -> None:
    found = in_uml("in_another_mount_namespace", module="minix", timeout=180)
    assert found["blind"] == 1
    assert found["result"]["result"]["modules"] == ["minix"]
    assert fields(found["lines"], "cwd") == ["/ root:/"]


def test_s13_they_follow_when_it_moves_its_root(in_uml: Call) -> None:
    assert in_uml("root_that_moves") == [["/", "/"], ["/run/newroot", "/run/newroot/work"]]


def test_s14_start_failed_requests_and_stop_are_in_syslog(in_uml: Call) -> None:
    lines = in_uml("logged", timeout=180)
    text = "\n".join(lines)
    assert [line for line in lines if not line.startswith("<") or "\n" in line] == []
    assert "kmodd 0.1.0 started: kernel linux" in text
    assert "failed: module name fs-no\\x0asuchfs holds a byte" in text
    assert "not-found: cannot load fs-nosuchfs" in text
    assert "kmodd stopped" in text


def test_a_daemon_killed_in_the_middle_of_a_load_costs_nobody_the_answer(in_uml: Call) -> None:
    found = in_uml("killed_while_loading", module="minix")
    assert found["errno"] != errno.ENODEV
    assert found["live"]


def test_a_daemon_that_hangs_is_given_up_after_a_second(in_uml: Call) -> None:
    found = in_uml("hung", module="minix")
    assert found["errno"] != errno.ENODEV
    assert found["live"]
    assert found["names"] == ["fs-nosuchfs"]


def test_fail_closed_refuses_while_the_daemon_is_gone(in_uml: Call) -> None:
    found = in_uml("denied_without_daemon", module="minix")
    assert found["errno"] == errno.ENODEV
    assert found["with_daemon"] != errno.ENODEV
    assert found["link"] == "/sbin/modprobe"


def test_stop_unhooks_first_then_finishes_what_it_has_taken_on(in_uml: Call) -> None:
    found = in_uml("stopped_while_loading", module="minix")
    assert found["seen"] == {"alive_when_unhooked": True, "new_request": errno.ENODEV}
    assert found["errno"] != errno.ENODEV
    assert found["live"]
    assert found["hook"] == "/sbin/modprobe\n"


def test_a_refusal_to_unload_says_where_it_is_mounted(in_uml: Call) -> None:
    found = in_uml("stick_in_use", point="/mnt/a, b\r\n")
    vfat, fat, loop = found["used"]
    assert vfat == [1, "kmodd: cannot unload vfat: it has 1 user: vfat mounted at /mnt/a,\\x20b\\x0d\\x0a\n"]
    assert fat == [1, "kmodd: cannot unload fat: it is used by vfat (try --holders)\n"]
    assert loop[0] == 1
    assert "among them block device loop0 mounted at /mnt/a,\\x20b\\x0d\\x0a\n" in loop[1]
    vfat, loop = found["idle"]
    assert vfat == [0, "vfat: unloaded\n"]
    assert loop == [
        1,
        "kmodd: cannot unload loop: it has 1 user: block device loop0 on /memfd:stick\\x20(deleted)\n",
    ]
    assert found["free"] == [[0, "loop: unloaded\n"]]


@pytest.mark.parametrize(
    ("directive", "mode", "told"),
    [
        (
            "remove minix echo $MODPROBE_MODULE stays >&2; exit 3\n",
            0o644,
            "its remove command (/etc/modprobe.d/unload.conf:1) ended with exit status 3: minix stays\n",
        ),
        ("remove minix true\n", 0o644, "ended with success and left it in the kernel"),
        ("remove min* modprobe -r --ignore-remove minix && >/run/by_command\n", 0o644, None),
        ("remove minix exit 3\n", 0o666, None),
        ("remove romfs exit 3\n", 0o644, None),
    ],
)
def test_remove_commands_are_run_where_they_can_be_trusted(
    in_uml: Call, directive: str, mode: int, told: str | None
) -> None:
    status, output = in_uml("removed_with", directive=directive, mode=mode)
    if told is None:
        assert (status, output) == (0, "minix: unloaded\n")
    else:
        assert (status, told in output) == (1, True), output
    by_command = "from pathlib import Path; p = Path('/run/by_command'); result = p.exists(); p.unlink(True)"
    assert in_uml(by_command) == ("/run/by_command" in directive)
    assert ("minix" in in_uml("live")) == (told is not None)


def test_s11_no_zombie_is_left(in_uml: Call) -> None:
    in_uml("ask_nothing_often", count=20)
    assert in_uml("zombies") == []
