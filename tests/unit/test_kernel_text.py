"""What the kernel says in /proc, parsed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel import refusal, stacks
from kmodd.kernel.interface import ModuleState, Wait
from kmodd.kernel.linux import LinuxKernel, parse_proc_modules

PROC_MODULES = """\
kmodd_block 16384 0 - Loading 0xffffffffc0a00000 (OE+)
dccp_ipv4 36864 0 - Live 0xffffffffc09f0000
kmodd_noexit 16384 0 [permanent], Live 0xffffffffc09e0000 (OE)
dccp 143360 2 dccp_ipv4,dccp_diag, Unloading 0xffffffffc09c0000
"""


def test_proc_modules() -> None:
    modules = parse_proc_modules(PROC_MODULES)
    assert list(modules) == ["dccp", "kmodd_noexit", "dccp_ipv4", "kmodd_block"]
    assert modules["dccp"].holders == ("dccp_ipv4", "dccp_diag")
    assert (modules["dccp"].size, modules["dccp"].refcount) == (143360, 2)
    assert modules["dccp"].state is ModuleState.GOING
    assert modules["kmodd_noexit"].permanent
    assert modules["kmodd_noexit"].holders == ()
    assert modules["kmodd_block"].state is ModuleState.COMING


def test_a_kernel_that_cannot_unload_has_no_refcount() -> None:
    assert parse_proc_modules("x 1 - - Live 0x0\n")["x"].refcount is None


def test_a_kernel_without_modules_has_none(tmp_path: Path) -> None:
    assert LinuxKernel(str(tmp_path)).modules() == {}


REQUESTER = """\
[<0>] call_usermodehelper_exec+0x14a/0x180
[<0>] __request_module+0x1b5/0x300
[<0>] init_module+0x2e/0x1000 [kmodd_self]
[<0>] do_one_initcall+0x56/0x230
[<0>] do_init_module+0x4a/0x1f0
[<0>] __do_sys_finit_module+0xac/0x120
[<0>] do_syscall_64+0x55/0xb0
"""
WAITER = """\
[<0>] load_module+0x6a3/0xb90
[<0>] __do_sys_finit_module+0xac/0x120
[<0>] do_syscall_64+0x55/0xb0
"""
READING = """\
[<0>] folio_wait_bit_common+0x13d/0x350
[<0>] filemap_read+0x2f1/0x340
[<0>] kernel_read_file+0x24d/0x290
[<0>] kernel_read_file_from_fd+0x5b/0x90
[<0>] __do_sys_finit_module+0x88/0x120
[<0>] do_syscall_64+0x55/0xb0
"""
IDEMPOTENT = """\
[<0>] wait_for_completion_interruptible+0x13d/0x350
[<0>] idempotent_init_module+0x2f1/0x340
[<0>] __x64_sys_finit_module+0x65/0xc0
[<0>] do_syscall_64+0x55/0xb0
"""
SLOW_INIT = """\
[<0>] msleep+0x2f/0x40
[<0>] init_module+0x2e/0x1000 [kmodd_sleep]
[<0>] do_one_initcall+0x56/0x230
[<0>] do_init_module+0x4a/0x1f0
[<0>] load_module+0x6a3/0xb90
[<0>] __do_sys_finit_module+0xac/0x120
"""


def test_stacks_tell_what_a_task_waits_for() -> None:
    assert stacks.waiting_for(REQUESTER) is Wait.REQUEST
    assert stacks.waiting_for(WAITER) is Wait.MODULE
    assert stacks.waiting_for(IDEMPOTENT) is Wait.MODULE
    assert stacks.waiting_for(READING) is None, "a slow disk is no other task's load"
    assert stacks.waiting_for(SLOW_INIT) is None
    assert stacks.waiting_for("") is None
    assert stacks.frames(REQUESTER)[2] == ("init_module", "kmodd_self")


@given(st.text(max_size=300))
def test_any_stack_is_read(text: str) -> None:
    stacks.waiting_for(text)


def task(proc: Path, tid: int, comm: str, state: str, session: int, stack: str) -> None:
    folder = proc / str(tid) / "task" / str(tid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{tid} ({comm}) {state} 1 {session} {session} 0 -1 4194560 0")
    (folder / "stack").write_text(stack)


def test_blocked_tasks(tmp_path: Path) -> None:
    task(tmp_path, 10, "modprobe", "D", 10, REQUESTER)
    task(tmp_path, 11, "a) R 1 2 (b", "D", 99, REQUESTER.replace("kmodd_self", "af_alg"))
    task(tmp_path, 12, "modprobe", "S", 12, WAITER)
    task(tmp_path, 13, "somebody", "S", 13, WAITER)
    task(tmp_path, 14, "running", "R", 10, REQUESTER)
    task(tmp_path, 15, "slow", "D", 15, SLOW_INIT)
    (tmp_path / "16").mkdir()
    (tmp_path / "sys").mkdir()
    found = {
        blocked.tid: blocked for blocked in stacks.blocked_tasks({10, 12, 15}, ["kmodd_self"], str(tmp_path))
    }
    assert set(found) == {10, 11, 12}
    assert (found[10].session, found[10].wait, found[10].modules) == (10, Wait.REQUEST, {"kmodd_self"})
    assert found[11].session == 99
    assert (found[12].wait, found[12].modules) == (Wait.MODULE, {"kmodd_self"})


@pytest.mark.parametrize("stat", ["", "1", "1 (x", "1 (x) D", "1 (x) D 1 2 y 0 0"])
def test_a_stat_that_is_cut_is_an_error_that_is_caught(stat: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        stacks.state_and_session(stat)


def test_a_line_of_the_kernel_log_about_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(b"6,1,5,-;a\xff: of an earlier load\n")
    with refusal.KernelLog(str(path)) as log:
        assert log.line("a\udcff") is None
        with path.open("ab") as file:
            file.write(b"6,2,6,-;a\xff: no\n")
        assert log.line("a\udcff") == "a\\xff: no"
    with refusal.KernelLog(str(tmp_path / "none")) as log:
        assert log.line("a") is None
