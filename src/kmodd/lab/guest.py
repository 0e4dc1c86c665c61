"""A guest for tests: booted once, then asked to run things."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

from kmodd.lab.boot import come_up, environment, send_start
from kmodd.lab.errors import LabError, LabTimeout
from kmodd.lab.machine import Machine
from kmodd.lab.options import LabOptions
from kmodd.lab.wire import Kind

_PIECE = 1 << 16
_PATIENCE = 10.0
"""Seconds that the guest gets to say what its processes do."""


@dataclass(slots=True)
class _Call:
    """What is known of a process in the guest."""

    what: tuple[str, ...]
    data: dict[Kind, bytearray] = field(default_factory=dict)
    status: int | None = None

    def text(self, kind: Kind) -> str:
        return self.data.get(kind, b"").decode(errors="replace")


class Guest:
    """A kernel with an agent in it; a context manager. One thread at a time may use it."""

    def __init__(self, options: LabOptions | None = None) -> None:
        """Prepare it; `with` boots it."""
        self._options = options or LabOptions()
        self._machine = Machine(self._options)
        self._calls: dict[int, _Call] = {}
        self._last = 0

    def __enter__(self) -> Self:
        """Boot.

        :raises LabError: it does not come up
        """
        self._machine.__enter__()
        try:
            limit = self._options.timeout
            come_up(self._machine, self._options, time.monotonic() + limit if limit else None)
        except BaseException as error:
            self._machine.__exit__(None, None, None)
            if isinstance(error, LabError):
                error.add_note(f"console:\n{self.console}")
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it at once."""
        self._machine.__exit__(kind, value, traceback)

    @property
    def console(self) -> str:
        """The last lines of the kernel's console."""
        return self._machine.console

    def dmesg(self) -> str:
        """The kernel's log."""
        return self.run("dmesg").stdout

    def run(
        self,
        *argv: str,
        input: str | None = None,  # noqa: A002  as subprocess.run has it
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a return code below 0 is a signal's number, as in subprocess.

        :raises LabTimeout: it takes more than `timeout` seconds; it has been killed then, and a note of
            the exception tells what each process of the guest waited for
        :raises LabError: the guest ends
        """
        return self.wait(self.start(*argv, input=input, env=env), timeout)

    def start(
        self,
        *argv: str,
        input: str | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Start a command; its number is for wait(), signal()."""
        request = {
            "argv": argv,
            "cwd": os.getcwd(),
            "env": environment({**self._options.env, **(env or {})}),
            "stdin": "null" if input is None else "stream",
        }
        ident = self._begin(argv, request)
        if input is not None:
            data = input.encode()
            for offset in range(0, len(data), _PIECE):
                self._machine.channel.send(Kind.STDIN, ident, data[offset : offset + _PIECE])
            self._machine.channel.send(Kind.STDIN, ident)
        return ident

    def wait(self, ident: int, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Wait for what start() started.

        :raises LabTimeout: it takes more than `timeout` seconds; it has been killed then
        """
        call = self._finish(ident, timeout)
        return subprocess.CompletedProcess(
            list(call.what),
            cast(int, call.status),
            call.text(Kind.STDOUT),
            call.text(Kind.STDERR),
        )

    def signal(self, ident: int, number: int = signal.SIGTERM) -> None:
        """Send the process group of what start() started a signal."""
        self._machine.channel.send(Kind.SIGNAL, ident, json.dumps(int(number)).encode())
        self._machine.channel.wait(time.monotonic())

    def python(self, source: str, *, timeout: float = 60, **args: object) -> object:
        """Run `source` in a fork of the agent with `args` as variables: the value of `result`.

        :raises LabError: it raises, with the traceback in the guest; or the guest ends
        :raises LabTimeout: it takes more than `timeout` seconds; it has been killed then
        """
        request = {"source": source, "args": args, "env": dict(self._options.env)}
        call = self._finish(self._begin(("python", source), request), timeout)
        answer = call.text(Kind.RESULT)
        if not answer:
            raise LabError(
                f"Python in the guest ended with status {call.status} and no result: "
                f"{call.text(Kind.STDERR).strip()}"
            )
        value = json.loads(answer)
        if value["error"] is not None:
            raise LabError(f"Python in the guest raised an exception:\n{value['error']}")
        result: object = value["result"]
        return result

    def _begin(self, what: tuple[str, ...], request: Mapping[str, object]) -> int:
        self._last = self._last % 0xFFFF + 1
        self._calls[self._last] = _Call(what)
        send_start(self._machine, self._last, request)
        self._machine.channel.wait(time.monotonic())
        return self._last

    def _finish(self, ident: int, timeout: float) -> _Call:
        call = self._calls[ident]
        if not self._collect(ident, timeout):
            report = self._what_it_does()
            self.signal(ident, signal.SIGKILL)
            alive = self._collect(ident, 5)
            self._calls.pop(ident, None)
            error = LabTimeout(
                f"{' '.join(call.what)} takes more than {timeout:g} seconds in the guest"
                + ("" if alive else ", and the guest does not answer any more")
            )
            error.add_note(f"console:\n{self.console}")
            if report is not None:
                error.add_note(f"what waited in the guest, and where:\n{report}")
            raise error
        del self._calls[ident]
        return call

    def _what_it_does(self) -> str | None:
        """Return what the guest's processes wait for; None where it does not say."""
        source = "from kmodd.lab import stuck\nresult = stuck.report()"
        ident = self._begin(("python", source), {"source": source, "args": {}, "env": {}})
        answered = self._collect(ident, _PATIENCE)
        answer = self._calls.pop(ident).text(Kind.RESULT)
        if not answered or not answer:
            return None
        value = json.loads(answer)
        return str(value["error"] or value["result"])

    def _collect(self, ident: int, timeout: float) -> bool:
        """Take frames until a process has ended; False: not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._calls[ident].status is None:
            frame = self._machine.channel.receive(deadline)
            if frame is None:
                return False
            call = self._calls.get(frame.ident)
            if call is None:
                continue
            match frame.kind:
                case Kind.STDOUT | Kind.STDERR | Kind.RESULT:
                    call.data.setdefault(frame.kind, bytearray()).extend(frame.payload)
                case Kind.EXIT:
                    answer = json.loads(frame.payload)
                    call.status = answer["status"]
                    if error := answer["error"]:
                        call.data.setdefault(Kind.STDERR, bytearray()).extend(error.encode())
                case _:
                    pass
        return True
