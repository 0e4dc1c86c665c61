"""S5, S6, S8, S11: one external program, whatever it does with what it was given."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kmodd.broker import child


def run(tmp_path: Path, text: str, *arguments: str) -> child.Ended:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n" + text)
    program.chmod(0o755)
    return child.run(str(program), [str(program), *arguments], lambda _pid: None)


def test_s6_each_argument_arrives_as_it_is(tmp_path: Path) -> None:
    ended = run(tmp_path, 'for a; do printf "[%s]" "$a"; done; exit 7', "-q", "--", "a b", "$(x)\n;'\"", "")
    assert (ended.status, ended.output) == (7, b"[-q][--][a b][$(x)\n;'\"][]")


def test_s6_the_environment_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    ended = run(tmp_path, "tr '\\0' '\\n' </proc/$$/environ")
    assert dict(line.split("=", 1) for line in ended.output.decode().splitlines()) == child.ENVIRONMENT


def test_s5_signals_that_we_block_or_ignore_are_not_its(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        ended = run(tmp_path, "kill -USR1 $$; kill -TERM $$; echo alive")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGUSR1, old)
    assert ended == child.Ended(-signal.SIGUSR1, b"")


def test_s5_it_leads_a_session_of_its_own_and_has_no_input(tmp_path: Path) -> None:
    pids: list[int] = []
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ncat; cut -d' ' -f1,5,6 /proc/$$/stat\n")
    program.chmod(0o755)
    ended = child.run(str(program), ["program"], pids.append)
    assert ended.output.split() == [str(pids[0]).encode()] * 3


def test_s6_what_it_prints_when_nobody_reads_any_more_does_not_end_it(tmp_path: Path) -> None:
    """The daemon is gone: an `install` command that goes on to print still does its work."""
    done = tmp_path / "done"
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as the daemon has it
        program = tmp_path / "program"
        program.write_text(
            f"#!/bin/sh\nwhile kill -0 {os.getpid()} 2>/dev/null; do sleep 0.01; done\n"
            f"echo loading; echo done >{done}.new; mv {done}.new {done}\n"
        )
        program.chmod(0o755)
        child.run(str(program), [str(program)], lambda _pid: os._exit(0))
    os.waitpid(pid, 0)
    end = time.monotonic() + 20
    while not done.exists():
        assert time.monotonic() < end, "it was killed when it printed"
        time.sleep(0.01)


def test_s8_a_program_that_ran_is_not_told_as_one_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    assert run(tmp_path, "exit 3").status == 3


def test_s8_what_cannot_be_executed_raises_its_errno(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        child.run(str(tmp_path / "none"), ["none"], lambda _pid: None)
    with pytest.raises(PermissionError):
        child.run(str(tmp_path), ["dir"], lambda _pid: None)
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELFnot")
    bad.chmod(0o755)
    with pytest.raises(OSError, match="Exec format error"):
        child.run(str(bad), ["bad"], lambda _pid: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_output_without_end_is_bounded_and_does_not_block_it(tmp_path: Path) -> None:
    ended = run(tmp_path, "head -c 5000000 /dev/zero; echo error >&2; exit 1")
    assert ended.status == 1
    assert len(ended.output) == child.OUTPUT_MAX


def test_s11_a_grandchild_that_keeps_the_output_open_does_not_keep_us(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    ended = run(tmp_path, f"sleep 1000 & echo $! >{pidfile}; echo done")
    try:
        assert ended == child.Ended(0, b"done\n")
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_s11_every_child_is_waited_for(tmp_path: Path) -> None:
    program = ["/bin/sh", "-c", "exit 0"]
    threads = [
        threading.Thread(target=child.run, args=(program[0], program, lambda _pid: None)) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_one_that_closes_its_output_is_still_waited_for(tmp_path: Path) -> None:
    ended = run(tmp_path, "exec >&- 2>&-; sleep 0.05; exit 4")
    assert ended.status == 4
