"""The settings: what there is, what it may be, where it is read from, and the live values (S12).

Files: `etc/kmodd/kmodd.toml`, then `kmodd.toml.d/*.toml` in `etc/kmodd`, `run/kmodd` and
`usr/lib/kmodd` below the root; a file name in an earlier directory masks the same name in a later one;
what is left is read in byte order of name, later values replace earlier ones (kmodd.toml(5)).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.errors import KmoddError, SettingsError

DIRECTORIES = ("etc/kmodd", "run/kmodd", "usr/lib/kmodd")
_FILE_MAX = 1 << 20

Value = str | int | float | bool | list[str]
Check = Callable[[Value], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """One knob: its default, what it means, and what it may be.

    `check` returns what is wrong with a value of the right type, or None.
    """

    key: str
    default: Value
    meaning: str
    check: Check


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _path_or_empty(value: Value) -> str | None:
    assert isinstance(value, str)
    if not value:
        return None
    if not value.startswith("/") or "\0" in value:
        return "must be an absolute path, or empty"
    if not _encodable(value):
        return "must be text that a file name may have"
    return None if len(os.fsencode(value)) < 4096 else "is longer than a path may be (4095 bytes)"


def _arguments(value: Value) -> str | None:
    assert isinstance(value, list)
    if len(value) > 64:
        return "takes at most 64 arguments"
    if any("\0" in item or len(item) > 4096 or not _encodable(item) for item in value):
        return "takes arguments of at most 4096 bytes without NUL"
    return None


DELAY = re.compile(r"(?P<glob>[^=\s]{1,256})=(?P<delay>[0-9]{1,8}(\.[0-9]{1,3})?)", re.ASCII)
"""An entry of `unload_delays`: a glob, and seconds."""
_ENTRIES_MAX = 1000


def _globs(value: Value) -> str | None:
    assert isinstance(value, list)
    if len(value) > _ENTRIES_MAX:
        return f"takes at most {_ENTRIES_MAX} globs"
    if any(not 0 < len(item) <= 256 or not item.isprintable() or " " in item for item in value):
        return "takes globs on names of modules, of 1 to 256 characters without spaces"
    return None


def _delays(value: Value) -> str | None:
    assert isinstance(value, list)
    if len(value) > _ENTRIES_MAX:
        return f"takes at most {_ENTRIES_MAX} entries"
    if any(DELAY.fullmatch(item) is None for item in value):
        return 'takes entries of a glob, "=" and seconds, as in ["nf_*=300", "loop=0"]'
    return None


def _between(low: float, high: float) -> Check:
    def check(value: Value) -> str | None:
        assert isinstance(value, int | float)
        return None if low <= value <= high else f"must be from {low:g} to {high:g}"

    return check


def _one_of(*choices: str) -> Check:
    def check(value: Value) -> str | None:
        return None if value in choices else f"must be one of {', '.join(choices)}"

    return check


def _anything(_value: Value) -> str | None:
    return None


_UNITS = "smhdw"


def _age(value: Value) -> str | None:
    assert isinstance(value, str)
    digits, unit = value[:-1], value[-1:]
    if unit in _UNITS and unit and digits.isascii() and digits.isdigit() and 0 < int(digits[:9]) < 10**8:
        return None
    return f'must be a whole number and a unit of {", ".join(_UNITS)}, as in "30d"'


_DAY = 86400

SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting(
            "modprobe_path",
            "",
            "Empty: load in the daemon itself. An absolute path below PID 1's root: run that, as in 1998.",
            _path_or_empty,
        ),
        Setting(
            "modprobe_args",
            ["-s", "-q", "--"],
            "Its arguments before the name.",
            _arguments,
        ),
        Setting(
            "unload_delay",
            60,
            "Seconds between autoclean passes: as long must a module have been unused. 0 = never.",
            _between(0, 365 * _DAY),
        ),
        Setting(
            "unload_delays",
            [],
            "That delay for single modules, the first that matches: `GLOB=SECONDS`, 0 = never.",
            _delays,
        ),
        Setting(
            "keep",
            [],
            "Globs on modules that autoclean never unloads, beside those that are known to be kept.",
            _globs,
        ),
        Setting(
            "load_timeout",
            0,
            "Seconds after which a requester is told timed-out, 0 = never; the load goes on.",
            _between(0, 365 * _DAY),
        ),
        Setting(
            "fallback",
            "modprobe",
            "What the helper does without the daemon: `modprobe` runs the real one, `deny` refuses.",
            _one_of("modprobe", "deny"),
        ),
        Setting(
            "journal",
            True,
            "Whether events are written to the disk; if not, the newest stay in memory.",
            _anything,
        ),
        Setting(
            "journal_keep",
            "30d",
            "How long events stay in the journal, a whole number and a unit: s, m, h, d or w.",
            _age,
        ),
        Setting(
            "serial",
            False,
            "Load the modules of a request one after the other, in modprobe's order, for drivers that race.",
            _anything,
        ),
        Setting(
            "tracing",
            True,
            "Find out who asks, and what others load: by two tracefs instances of kmodd's own.",
            _anything,
        ),
        Setting(
            "kernel.keep_tree",
            False,
            "Keep the running kernel's modules across an upgrade: hard links in /lib/modules/.kmodd.",
            _anything,
        ),
        Setting(
            "policy.mode",
            "enforce",
            "How much the policy counts: `enforce`, `audit` (tells what it would deny) or `off`.",
            _one_of("enforce", "audit", "off"),
        ),
        Setting(
            "stop_timeout",
            20,
            "Seconds that a stopping daemon lets running loads finish before it answers their waiters.",
            _between(0, 3600),
        ),
    )
}


def validate(key: str, value: object) -> Value:
    """Return `value` as setting `key` takes it.

    Raises:
        SettingsError: there is no such setting, or the value is of the wrong type or out of range.
    """
    setting = SETTINGS.get(key)
    if setting is None:
        raise SettingsError(f"unknown setting {key[:64]!r}: there are {', '.join(SETTINGS)}")
    taken = _of_type(setting, value)
    if problem := setting.check(taken):
        raise SettingsError(f"{key} {problem}, not {_show(value)}")
    return taken


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:80] + "..."


def _of_type(setting: Setting, value: object) -> Value:
    default = setting.default
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise SettingsError(f"{setting.key} takes true or false, not {_show(value)}")
    if isinstance(default, str):
        if isinstance(value, str):
            return value
        raise SettingsError(f"{setting.key} takes a string, not {_show(value)}")
    if isinstance(default, list):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return list(value)
        raise SettingsError(f"{setting.key} takes a list of strings, not {_show(value)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - NaN
        raise SettingsError(f"{setting.key} takes a number, not {_show(value)}")
    return value


def defaults() -> dict[str, Value]:
    """Return every setting at its default."""
    return {key: setting.default for key, setting in SETTINGS.items()}


def drop_ins(root: str, folder: str) -> list[str]:
    """Return the `*.toml` files of `folder` in kmodd's directories below `root`, in byte order of name.

    A file name in an earlier directory masks the same name in a later one.

    Raises:
        SettingsError: a directory cannot be read.
    """
    found: dict[str, str] = {}
    for directory in DIRECTORIES:
        path = os.path.join(root, directory, folder)
        try:
            names = os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            raise SettingsError(f"cannot read {path}: {err.strerror}") from err
        for name in names:
            if name.endswith(".toml") and not name.startswith("."):
                found.setdefault(name, os.path.join(path, name))
    return [found[name] for name in sorted(found, key=os.fsencode)]


def files(root: str) -> list[str]:
    """Return the settings files below `root` in the order they are read."""
    main = os.path.join(root, DIRECTORIES[0], "kmodd.toml")
    first = [main] if os.path.lexists(main) else []
    return first + drop_ins(root, "kmodd.toml.d")


def load(root: str) -> dict[str, Value]:
    """Return the settings that the files below `root` give, over the defaults.

    Raises:
        SettingsError: a file cannot be read, is not TOML, or has a setting that is refused; the message
            names the file.
    """
    values = defaults()
    for path in files(root):
        for key, value in _read(path).items():
            try:
                values[key] = validate(key, value)
            except SettingsError as err:
                raise SettingsError(f"{path}: {err}") from err
    return values


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            raw = file.read(_FILE_MAX + 1)
        if len(raw) > _FILE_MAX:
            raise SettingsError(f"{path}: larger than {_FILE_MAX} bytes")
        return _flat(tomllib.loads(raw.decode("utf-8")))
    except OSError as err:
        raise SettingsError(f"cannot read {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise SettingsError(f"{path}: not UTF-8 (byte {err.start})") from err
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        raise SettingsError(f"{path}: not TOML: {err}") from err


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a table with the keys of tables in it as `table.key`: settings have no deeper structure."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value and not prefix:
            flat.update(_flat(value, f"{key}."))
        else:
            flat[prefix + key] = value
    return flat


class Settings:
    """The live values. Whoever must act on a change subscribes; the others read when they need one."""

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._values: dict[str, Value] = {**defaults(), **(values or {})}
        self._listeners: list[Callable[[str, Value, Value], None]] = []
        self._changed: dict[str, int] = {}
        self.moment = 0
        """How many changes there have been."""

    def as_dict(self) -> dict[str, Value]:
        """Return a copy of all values."""
        return {key: self._values[key] for key in SETTINGS}

    def subscribe(self, listener: Callable[[str, Value, Value], None]) -> None:
        """Call `listener(key, old, new)` after each change."""
        self._listeners.append(listener)

    def set(self, key: str, value: object) -> bool:
        """Change one value; return whether it is a change.

        Raises:
            SettingsError: it is refused, and the old value stays.
            KmoddError: it cannot be put into effect, and the old value stays.
        """
        new = validate(key, value)
        old = self._values[key]
        if new == old:
            return False
        self._values[key] = new
        self.moment += 1
        self._changed[key] = self.moment
        try:
            for listener in self._listeners:
                listener(key, old, new)
        except KmoddError:
            # What cannot be put into effect is not in force, and can be tried again.
            self._values[key] = old
            raise
        return True

    def replace(self, values: Mapping[str, Value], *, but_since: int | None = None) -> list[str]:
        """Take over a whole set of values (SIGHUP); return the keys that changed.

        Those that have been changed since the moment `but_since` are left as they are.
        """
        checked = {key: validate(key, value) for key, value in values.items()}
        if but_since is not None:
            checked = {key: value for key, value in checked.items() if self._changed.get(key, 0) <= but_since}
        return [key for key, value in checked.items() if self.set(key, value)]

    @property
    def serial(self) -> bool:
        """Whether the modules of a request are loaded one after the other."""
        return bool(self._values["serial"])

    @property
    def tracing(self) -> bool:
        """Whether it is found out who asks, and what others load."""
        return bool(self._values["tracing"])

    @property
    def keep_tree(self) -> bool:
        """Whether the running kernel's modules are kept across an upgrade."""
        return bool(self._values["kernel.keep_tree"])

    @property
    def modprobe_path(self) -> str:
        """The external modprobe, an absolute path; empty: load in the daemon itself."""
        return str(self._values["modprobe_path"])

    @property
    def modprobe_args(self) -> list[str]:
        """Its arguments before the name."""
        return self._list("modprobe_args")

    @property
    def unload_delay(self) -> float:
        """Seconds between passes of autoclean; 0 for none."""
        return self._number("unload_delay")

    @property
    def unload_delays(self) -> list[tuple[str, float]]:
        """Globs on modules, and how many seconds each may be unused; 0 for ever."""
        entries = (DELAY.fullmatch(item) for item in self._list("unload_delays"))
        return [(entry["glob"], float(entry["delay"])) for entry in entries if entry is not None]

    @property
    def keep(self) -> list[str]:
        """Globs on modules that autoclean never unloads."""
        return self._list("keep")

    @property
    def load_timeout(self) -> float:
        """Seconds a requester waits; 0 for ever."""
        return self._number("load_timeout")

    @property
    def stop_timeout(self) -> float:
        """Seconds that running loads get when the daemon stops."""
        return self._number("stop_timeout")

    @property
    def fallback(self) -> str:
        """`modprobe` or `deny`."""
        return str(self._values["fallback"])

    @property
    def policy_mode(self) -> str:
        """`enforce`, `audit` or `off`."""
        return str(self._values["policy.mode"])

    @property
    def journal(self) -> bool:
        """Whether events are written to the disk."""
        return bool(self._values["journal"])

    @property
    def journal_keep(self) -> str:
        """How long events stay in the journal, a number and a unit."""
        return str(self._values["journal_keep"])

    def _list(self, key: str) -> list[str]:
        value = self._values[key]
        assert isinstance(value, list)
        return list(value)

    def _number(self, key: str) -> float:
        value = self._values[key]
        assert isinstance(value, int | float)
        return float(value)
