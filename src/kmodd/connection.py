"""The client side of varlink, as little of it as the commands need: JSON objects with a NUL behind each.

asyncvarlink would cost four times the start-up of Python itself; this costs a socket.
"""

from __future__ import annotations

import os

from kmodd import errors, plainjson

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any
else:
    # The C half of `socket`, all that is needed here: the other half turns constants into enums and brings
    # selectors, which costs a fifth of Python's own start.
    try:
        import _socket as socket
    except ImportError:
        import socket

DEFAULT_SOCKET = "/run/kmodd/io.kmodd"
_MESSAGE_MAX = 64 << 20

_ERRORS: dict[str, type[errors.KmoddError]] = {
    "NotFound": errors.NotFound,
    "Denied": errors.Denied,
    "TimedOut": errors.TimedOut,
    "Deadlock": errors.Deadlock,
    "InvalidName": errors.InvalidName,
    "InvalidSetting": errors.UsageError,
    "NotPermitted": errors.NotPermitted,
}


class Reply(Exception):
    """An error reply, as it came."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        super().__init__(error)
        self.error = error
        self.parameters = parameters

    def as_error(self) -> errors.KmoddError:
        """Return it as the exception that the command line ends with."""
        kind = _ERRORS.get(self.error.removeprefix("io.kmodd."), errors.KmoddError)
        return kind(self.parameters.get("error") or f"the daemon answered {self.error} {self.parameters}")


class Connection:
    """A connection to the daemon's API."""

    def __init__(self, path: str | None = None, patience: float | None = None) -> None:
        """Connect to `path`, else to $KMODD_SOCKET, else to /run/kmodd/io.kmodd.

        `patience`: after how many seconds without a word the daemon is taken to be gone; None for never.

        Raises:
            Unreachable: nobody is there.
            NotPermitted: the socket may not be opened.
        """
        self._path = path or os.environ.get("KMODD_SOCKET") or DEFAULT_SOCKET
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self._sock.settimeout(patience)
        try:
            self._sock.connect(self._path)
        except PermissionError as err:
            raise errors.NotPermitted(f"may not open {self._path}: {err.strerror}") from err
        except OSError as err:
            reason = err.strerror or str(err)
            raise errors.Unreachable(
                f"cannot reach kmodd at {self._path}: {reason}; start it with `kmodd serve`"
            ) from err

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return what it returns. Parameters that are None are left out.

        Raises:
            Reply: it answered with an error.
            Unreachable: the daemon has gone.
        """
        self._send({"method": f"io.kmodd.{method}", "parameters": _given(parameters)})
        return self._receive()[0]

    def stream(self, method: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Call a method that goes on replying; the last reply ends it and is not returned."""
        self._send({"method": f"io.kmodd.{method}", "parameters": _given(parameters), "more": True})
        while True:
            returned, continues = self._receive()
            if not continues:
                return
            yield returned

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(plainjson.dumps(message).encode() + b"\0")
        except OSError as err:
            raise self._gone() from err

    def _receive(self) -> tuple[dict[str, Any], bool]:
        while b"\0" not in self._buffer:
            try:
                data = self._sock.recv(65536)
            except OSError as err:
                raise self._gone() from err
            if not data or len(self._buffer) > _MESSAGE_MAX:
                raise self._gone()
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        try:
            message = plainjson.loads(raw)
            parameters = dict(message.get("parameters") or {})
            error = message.get("error")
        except (ValueError, TypeError, AttributeError, RecursionError) as err:
            raise errors.Unreachable(f"what answers at {self._path} is not kmodd: no varlink reply") from err
        if error is not None:
            raise Reply(str(error), parameters)
        return parameters, bool(message.get("continues"))

    def _gone(self) -> errors.Unreachable:
        return errors.Unreachable(f"kmodd at {self._path} has closed the connection without an answer")


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if value is not None}
