"""What may be asked for: the rule for names, and how a name that breaks it is shown.

Names come from strangers: an unprivileged user chooses parts of them (a generic netlink family, a
filesystem type). A name is never cut, never part of a path, a shell line or a format string (S7).
"""

from __future__ import annotations

from kmodd.errors import InvalidName

KERNEL_MAX = 55
"""Longest name in bytes the kernel sends (MODULE_NAME_LEN - 1, include/linux/moduleparam.h)."""

API_MAX = 4096
"""Longest name in bytes the API takes: a modalias may be long."""

_ALLOWED = frozenset(range(0x21, 0x7F))
_SHOWN_MAX = 256


def escape(raw: bytes, limit: int = _SHOWN_MAX) -> str:
    r"""Return `raw` as printable ASCII: `\xNN` for what is not 0x21 to 0x7e, and for the backslash.

    At most `limit` bytes of it are shown; a longer one ends with its length, as in `aaa…(5000 bytes)`.
    """
    shown = "".join(
        chr(byte) if byte in _ALLOWED and byte != 0x5C else f"\\x{byte:02x}" for byte in raw[:limit]
    )
    return shown if len(raw) <= limit else f"{shown}...({len(raw)} bytes)"


def check(raw: bytes, longest: int = API_MAX) -> str:
    """Return the name if it may be asked for.

    1 to `longest` bytes, printable ASCII without spaces (0x21 to 0x7e), not beginning with `-`, `/` or `.`.

    Raises:
        InvalidName: it may not; the message shows it escaped and says why.
    """
    if not raw:
        raise InvalidName("an empty name names no module")
    if len(raw) > longest:
        raise InvalidName(
            f"module name {escape(raw, 64)} is {len(raw)} bytes long; at most {longest} are taken"
        )
    if not _ALLOWED.issuperset(raw):
        raise InvalidName(
            f"module name {escape(raw)} holds a byte that is not printable ASCII (0x21 to 0x7e, no spaces)"
        )
    if raw[:1] in {b"-", b"/", b"."}:
        raise InvalidName(f"module name {escape(raw)} begins with {chr(raw[0])}, which no module name does")
    return raw.decode("ascii")


def normalise(name: str) -> str:
    """Return a plain module name as the kernel spells it: `-` becomes `_`, except inside `[...]`.

    As modprobe does (facts of kmod 30 and later); unbalanced brackets are left as they are.
    """
    if "-" not in name:
        return name
    if "[" not in name:
        return name.replace("-", "_")
    out: list[str] = []
    inside = False
    for char in name:
        inside = (inside or char == "[") and char != "]"
        out.append("_" if char == "-" and not inside else char)
    return "".join(out)


def printable(raw: bytes, limit: int = 4096) -> str:
    r"""Return what a program printed as one line that no log can mistake for several.

    Line ends become `; `, other control characters `\xNN`; bytes that are not UTF-8 too.
    """
    text = raw[:limit].decode("utf-8", errors="backslashreplace").strip()
    if text.isprintable():
        return text  # nearly always, and a requester's names are shown on each request
    lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in lines
    )
