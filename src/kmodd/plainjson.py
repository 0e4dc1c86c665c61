"""JSON as `json` reads and writes it, without what importing `json` costs a client: `re`, and so `enum`.

Those cost more than half of Python's own start. The C half of `json` needs none of it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Reading:
    """What the scanner of CPython's `_json` asks a decoder for: `json.JSONDecoder`'s own values."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # of NaN, Infinity and -Infinity, which `json` takes too
    memo: dict[str, str] = {}  # noqa: RUF012 - asked for by name, and left alone


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} has no JSON")


def _halves() -> tuple[Callable[[object], str], Callable[[str], Any]]:
    """Return what writes and what reads; `json`'s own where this Python has no such C half."""
    try:
        import _json  # noqa: PLC0415 - what is missing is seen here

        # The names and arguments of 3.11 to 3.14.
        encode = _json.make_encoder(
            None, _refuse, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True
        )
        reading: Any = _Reading
        scan = _json.make_scanner(reading)
    except (ImportError, AttributeError, TypeError):
        import json  # noqa: PLC0415 - only then

        return json.dumps, json.loads

    def write(value: object) -> str:
        return "".join(encode(value, 0))

    def read(text: str) -> Any:
        text = text.strip(" \t\n\r")
        try:
            value, end = scan(text, 0)
        except StopIteration:
            raise ValueError("no JSON") from None
        if end != len(text):
            raise ValueError("more than one value")
        return value

    return write, read


_write, _read = _halves()


def dumps(value: object) -> str:
    """Return `value` as JSON, as `json.dumps` does.

    Raises:
        TypeError: it has no JSON.
    """
    return _write(value)


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text, as `json.loads` does; bytes are UTF-8.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    return _read(text if isinstance(text, str) else text.decode("utf-8", "surrogatepass"))
