"""The kernel.modprobe hook: the kernel's helper is ours, and what it was before comes back.

Two files below `run/kmodd`, a directory that only root may write:
- `fallback`, a symbolic link to what the helper executes without the daemon: the path that
  kernel.modprobe held before, or one that does not exist where `fallback = "deny"`. A link is replaced
  by rename(2), so the helper never sees half of a change, and following it costs it no system call.
- `modprobe.before`, what kernel.modprobe held before, so that a daemon that was killed and started
  again still knows what to put back.
"""

from __future__ import annotations

import contextlib
import os
import stat

from kmodd.errors import KmoddError, NotPermitted

SYSCTL = "/proc/sys/kernel/modprobe"
DEFAULT_MODPROBE = "/sbin/modprobe"
DENIED = "/nonexistent/denied-by-kmodd"
_PATH_MAX = 255  # KMOD_PATH_LEN - 1, kernel/kmod.c

HELPER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "kmodd-helper")
"""The helper that is installed beside this package."""


def check_helper(path: str) -> None:
    """Refuse a helper that the kernel should not run as root.

    Raises:
        KmoddError: it is missing, too long a path, or it or a directory above it may be changed by
            someone else than root.
    """
    if len(os.fsencode(path)) > _PATH_MAX:
        raise KmoddError(f"cannot hook: {path} is longer than kernel.modprobe takes ({_PATH_MAX} bytes)")
    real = os.path.realpath(path)
    if not os.path.isfile(real) or not os.access(real, os.X_OK):
        raise KmoddError(f"cannot hook: the helper {path} is missing; install kmodd with `pip install .`")
    step = real
    while True:
        info = os.stat(step)
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_uid != 0 or (info.st_mode & 0o022 and not sticky):
            raise KmoddError(
                f"cannot hook: {step} can be changed by others than root, and the kernel runs the helper "
                f"{path} as root; install kmodd as root"
            )
        if step == "/":
            return
        step = os.path.dirname(step)


class Hook:
    """kernel.modprobe, pointed at the helper and put back."""

    def __init__(self, run_dir: str, helper: str = HELPER, sysctl: str = SYSCTL) -> None:
        self._run_dir = run_dir
        # Its real path: what is checked is what the kernel executes, whoever owns a link on the way.
        self._helper = os.path.realpath(helper)
        self._sysctl = sysctl
        self._link = os.path.join(run_dir, "fallback")
        self._before = os.path.join(run_dir, "modprobe.before")

    @property
    def helper(self) -> str:
        """The path that kernel.modprobe is pointed at."""
        return self._helper

    def current(self) -> str:
        """Return what kernel.modprobe holds.

        Raises:
            KmoddError: the kernel has no such setting (no modules), or it cannot be read.
        """
        try:
            with open(self._sysctl, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().removesuffix("\n")
        except FileNotFoundError as err:
            raise KmoddError(
                f"{self._sysctl} is not there: this kernel was built without loadable modules"
            ) from err
        except OSError as err:
            raise KmoddError(f"cannot read {self._sysctl}: {err.strerror}") from err

    def before(self) -> str:
        """Return what is put back: what kernel.modprobe held before the hook, by default /sbin/modprobe."""
        try:
            with open(self._before, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().removesuffix("\n")
        except FileNotFoundError:
            return DEFAULT_MODPROBE

    def is_on(self) -> bool:
        """Return whether kernel.modprobe is our helper."""
        return self.current() == self._helper

    def on(self, fallback: str) -> None:
        """Point kernel.modprobe at the helper, with `fallback` (`modprobe` or `deny`) ready before.

        Raises:
            KmoddError: the helper may not be trusted, or kernel.modprobe cannot be written.
        """
        check_helper(self._helper)
        current = self.current()
        # A helper of ours, of another version perhaps, is never what to fall back to: it would fall
        # back to itself, for ever.
        if os.path.basename(current) != os.path.basename(HELPER):
            self._replace(self._before, current)
        self.set_fallback(fallback)
        self._write(self._helper)

    def off(self) -> bool:
        """Put back what kernel.modprobe held before, unless somebody else has changed it since.

        Returns whether it was our helper. The fallback's link stays: a helper that the kernel has
        already started may still need it.
        """
        if not self.is_on():
            return False
        self._write(self.before())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._before)
        return True

    def set_fallback(self, fallback: str) -> None:
        """Make the fallback's link say what the setting says; at once, for the next helper that needs it."""
        # An empty kernel.modprobe meant: no module on demand at all. Without the daemon it means so again.
        target = self.before() if fallback == "modprobe" else DENIED
        temporary = f"{self._link}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            os.symlink(target or DENIED, temporary)
            os.rename(temporary, self._link)
        except OSError as err:
            raise KmoddError(f"cannot write {self._link}: {err.strerror}") from err

    def _replace(self, path: str, text: str) -> None:
        temporary = f"{path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o644)
            with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text + "\n")
            os.rename(temporary, path)
        except OSError as err:
            raise KmoddError(f"cannot write {path}: {err.strerror}") from err

    def _write(self, value: str) -> None:
        try:
            with open(self._sysctl, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(value + "\n")
        except PermissionError as err:
            raise NotPermitted(f"cannot write {self._sysctl}: {err.strerror}; be root to hook") from err
        except OSError as err:
            raise KmoddError(f"cannot write {self._sysctl}: {err.strerror}") from err
