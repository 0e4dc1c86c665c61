"""The policy's files: which there are, whether only root can change them, and all of them as one policy.

Reading them blocks: never on the event loop.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from kmodd.errors import KmoddError, SettingsError
from kmodd.image import whole
from kmodd.policy import groups
from kmodd.policy.parse import Names, PolicyError, PolicyFile, parse
from kmodd.policy.rules import Rule
from kmodd.settings import DIRECTORIES, drop_ins

FOLDER = "policy.d"
COMMANDS = "00-commands.toml"
"""The file that `kmodd policy deny` and `allow` write: read first, so that it counts before all others."""
RUNTIME_COMMANDS = "00-commands-runtime.toml"
"""The same with `--runtime`: a name of its own, which none in /etc masks, and read before that."""
_NULL = os.makedev(1, 3)
_LINKS_MAX = 40  # the kernel's own bound (path_resolution(7))
_FILE_MAX = 1 << 20
_ALL_MAX = 1 << 23


@dataclass(frozen=True, slots=True)
class Policy:
    """All files, in the order in which they are read."""

    files: tuple[PolicyFile, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    """Name and text of each."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, in order."""
        return tuple(rule for file in self.files for rule in file.rules)


def names(*, ask: bool = True) -> Names:
    """Return what names stand for on this machine; a directory service may be asked, and take its time.

    Without `ask` nobody is asked, and no user or group is known.
    """
    return Names(
        user=_looked_up(lambda name: pwd.getpwnam(name).pw_uid) if ask else _nobody,
        group=_looked_up(lambda name: grp.getgrnam(name).gr_gid) if ask else _nobody,
        groups={name: group.patterns for name, group in groups.load().items()},
    )


def _nobody(_name: str) -> None:
    return None


def _looked_up(ask: Callable[[str], int]) -> Callable[[str], int | None]:
    def look(name: str) -> int | None:
        try:
            return ask(name)
        except (KeyError, OSError, ValueError):
            return None

    return look


def read(root: str, *, only_trusted: bool = True) -> dict[str, str]:
    """Return the text of each policy file below `root`, by its name, in order.

    `only_trusted`: refuse a file, or a directory above it, that others than root and we can change.

    Raises:
        PolicyError: a file cannot be read, or is not to be trusted.
    """
    texts: dict[str, str] = {}
    total = 0
    try:
        paths = drop_ins(root, FOLDER)
    except SettingsError as err:
        raise PolicyError(str(err), FOLDER) from err
    for path in paths:
        if only_trusted and (why := untrusted(path, root)):
            raise PolicyError(f"refused: {why}", path)
        try:
            data = whole.read(path, _FILE_MAX)
            text = data.decode("utf-8")
        except OSError as err:
            raise PolicyError(f"cannot be read: {err.strerror}", path) from err
        except UnicodeDecodeError as err:
            raise PolicyError(f"not UTF-8 (byte {err.start})", path) from err
        total += len(data)
        if total > _ALL_MAX:
            raise PolicyError(f"all policy files have more than {_ALL_MAX >> 20} MiB", path)
        texts[os.path.basename(path)] = text
    return texts


def untrusted(path: str, root: str) -> str | None:
    """Return who else could change a policy file, in words; None where only root and we can.

    Looked at: the file, and each directory and link on the way to it and to where it leads; what is above
    `root` is not.
    """
    ours = {0, os.geteuid()}
    top = os.path.realpath(root)
    above = top.rstrip("/") + "/"
    way = dict.fromkeys(_way(os.path.join(top, os.path.relpath(path, root))))
    for each in way:
        if each != top and above.startswith(each.rstrip("/") + "/"):
            continue
        try:
            info = os.lstat(each)
        except OSError as err:
            return f"{each}: {err.strerror}"
        if info.st_uid not in ours:
            return f"{each} belongs to uid {info.st_uid}; only root's files decide what may be loaded"
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL:
            continue  # a link to it masks a file; what is written to it is gone
        if stat.S_ISLNK(info.st_mode) or (stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX):
            continue  # only its owner can replace what is root's in a sticky directory
        if info.st_mode & 0o022:
            return f"{each} can be changed by others than its owner (mode {info.st_mode & 0o7777:04o})"
    return None


def _way(path: str) -> Iterator[str]:
    """Yield each directory and link that one comes by on the way to a file, and the file."""
    at, links = "/", 0
    left = path.split("/")[::-1]
    yield at
    while left:
        part = left.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            at = os.path.dirname(at)
            continue
        at = os.path.join(at, part)
        yield at
        try:
            target = os.readlink(at)
        except OSError:
            continue  # no link, or nothing at all
        links += 1
        if links > _LINKS_MAX:
            return  # opening it fails, too
        at = "/" if target.startswith("/") else os.path.dirname(at)
        left += target.split("/")[::-1]


def with_file(texts: Mapping[str, str], name: str, text: str) -> dict[str, str]:
    """Return the texts with one file new or replaced, in the order in which they are read."""
    every = {**texts, name: text}
    return {each: every[each] for each in sorted(every, key=os.fsencode)}


def assemble(texts: Mapping[str, str], known: Names) -> Policy:
    """Return the policy that files of these texts make.

    Raises:
        PolicyError: one of them cannot be taken.
    """
    files = tuple(parse(text, name, known) for name, text in texts.items())
    return Policy(files, tuple(texts.items()))


def load(root: str, *, only_trusted: bool = True, ask: bool = True) -> Policy:
    """Return the policy of the files below `root`; see `read` and `names`.

    Raises:
        PolicyError: one of them cannot be taken.
    """
    return assemble(read(root, only_trusted=only_trusted), names(ask=ask))


def place(root: str, *, runtime: bool = False) -> str:
    """Return the directory where commands write: /etc's, or with `runtime` /run's, gone at the next boot."""
    return os.path.join(root, DIRECTORIES[1 if runtime else 0], FOLDER)


class LastGood:
    """The last policy that was in force, for a start at which the files are broken."""

    def __init__(self, path: str) -> None:
        self.path = path

    def save(self, policy: Policy) -> None:
        """Keep a policy, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write(self.path, json.dumps(dict(policy.texts)), 0o600)

    def load(self) -> Policy | None:
        """Return what was kept; None where there is nothing, or nothing that can be taken."""
        try:
            if untrusted(self.path, os.path.dirname(self.path)):
                return None
            texts = json.loads(whole.read(self.path, 2 * _ALL_MAX))
            return assemble({str(name): str(text) for name, text in texts.items()}, names())
        except (OSError, ValueError, AttributeError, RecursionError, KmoddError):
            return None


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file by rename: whoever reads it finds the old one or the new one, and so does a power failure.

    Raises:
        OSError: it cannot be written; what was there is left.
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    fd, made = tempfile.mkstemp(prefix=".kmodd-", dir=directory)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(made, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise
