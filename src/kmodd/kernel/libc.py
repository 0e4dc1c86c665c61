"""The few calls that Python's os module lacks, made through the C library that is already there."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
from collections.abc import Mapping, Sequence

CLONE_FS = 0x00000200
CLONE_NEWNET = 0x40000000
PR_SET_NAME = 15
O_NONBLOCK = os.O_NONBLOCK

_FINIT_MODULE = {
    "x86_64": 313,
    "i386": 350,
    "i686": 350,
    "armv6l": 379,
    "armv7l": 379,
    "ppc64": 353,
    "ppc64le": 353,
    "s390x": 344,
}
_FINIT_MODULE_GENERIC = 273  # include/uapi/asm-generic/unistd.h: arm64, riscv, loongarch


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc().unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2) for the calling thread; os.setns is there from Python 3.12 on."""
    _check(_libc().setns(fd, kind), "setns")


def set_thread_name(name: str) -> None:
    """Give the calling thread a name of at most 15 bytes, as shown by ps(1) (PR_SET_NAME)."""
    _check(_libc().prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def finit_module(fd: int, parameters: bytes, flags: int = 0) -> None:
    """finit_module(2), which the C library does not wrap; ENOSYS where the kernel has no modules."""
    machine = os.uname().machine
    if machine == "x86_64" and ctypes.sizeof(ctypes.c_void_p) == 4:
        machine = "i386"  # a 32-bit program on a 64-bit kernel
    number = _FINIT_MODULE.get(machine, _FINIT_MODULE_GENERIC)
    _check(_libc().syscall(number, fd, parameters, flags), "finit_module")


def init_module(image: bytes, parameters: bytes) -> None:
    """init_module(2); ENOSYS where the C library or the kernel has no such call."""
    try:
        function = _libc().init_module
    except AttributeError as err:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "init_module") from err
    _check(function(image, ctypes.c_ulong(len(image)), parameters), "init_module")


_SPAWN_FLAGS = 0x04 | 0x08 | 0x80
"""POSIX_SPAWN_SETSIGDEF, _SETSIGMASK and _SETSID, the same in glibc (since 2.26) and musl."""
_OPAQUE = 1024
"""Bytes, more than posix_spawnattr_t, posix_spawn_file_actions_t and sigset_t have in either library."""


def spawn(path: str, argv: Sequence[str], environment: Mapping[str, str], output: int) -> int:
    """posix_spawn(3): a session of its own, every signal at its default and unblocked; return the pid.

    SIGPIPE is the exception, and stays as it is here: ignored, as systemd has it in what it runs. When the
    daemon ends before a load, what an `install` command goes on to print must not kill it.
    Descriptor 0 is /dev/null, 1 and 2 are `output`, the others are as their close-on-exec flag says.
    Not os.posix_spawn: that one keeps Python's lock until the child has executed the program, and a child
    that gets no processor, or a program on a disk that does not answer, would stop the event loop.

    Raises:
        OSError: the program cannot be executed, or no process can be made.
    """
    libc = _libc()
    attributes, actions, everything, nothing = (ctypes.create_string_buffer(_OPAQUE) for _ in range(4))
    _check_spawn(libc.posix_spawnattr_init(attributes), path)
    try:
        _check_spawn(libc.posix_spawn_file_actions_init(actions), path)
        try:
            libc.sigfillset(everything)
            libc.sigdelset(everything, signal.SIGPIPE)
            libc.sigemptyset(nothing)
            for result in (
                libc.posix_spawnattr_setsigdefault(attributes, everything),
                libc.posix_spawnattr_setsigmask(attributes, nothing),
                libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SPAWN_FLAGS)),
                libc.posix_spawn_file_actions_addopen(actions, 0, b"/dev/null", os.O_RDWR, 0),
                libc.posix_spawn_file_actions_adddup2(actions, output, 1),
                libc.posix_spawn_file_actions_adddup2(actions, output, 2),
            ):
                _check_spawn(result, path)
            words = [os.fsencode(word) for word in argv]
            settings = [os.fsencode(f"{key}={value}") for key, value in environment.items()]
            pid = ctypes.c_int()
            result = libc.posix_spawn(
                ctypes.byref(pid),
                os.fsencode(path),
                actions,
                attributes,
                (ctypes.c_char_p * (len(words) + 1))(*words, None),
                (ctypes.c_char_p * (len(settings) + 1))(*settings, None),
            )
            _check_spawn(result, path)
            return pid.value
        finally:
            libc.posix_spawn_file_actions_destroy(actions)
    finally:
        libc.posix_spawnattr_destroy(attributes)


def _check_spawn(result: int, path: str) -> None:
    """These functions return an error number, and leave errno alone."""
    if result:
        raise OSError(result, os.strerror(result), path)


def delete_module(name: str, flags: int = O_NONBLOCK) -> None:
    """delete_module(2)."""
    try:
        function = _libc().delete_module
    except AttributeError as err:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "delete_module") from err
    _check(function(os.fsencode(name), flags), "delete_module")
