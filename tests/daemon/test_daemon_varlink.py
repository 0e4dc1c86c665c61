"""The varlink API with the reference client, and against connections that do what no good client does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import varlink

from daemon.daemon_harness import (
    NOBODY,
    PATIENCE,
    Api,
    Daemon,
    Reply,
    environment,
    identity,
    refused,
    wait_until,
)

METHODS = {
    "RequestModule", "RemoveModule", "ListModules", "Autoclean", "MarkAutoclean", "Resolve", "GetStatus", "GetSettings", "SetSetting",
    "CheckPolicy", "GetPolicy", "ReloadPolicy", "Seal",
    "Log", "Why",
}  # fmt: skip
ERRORS = {
    "NotFound", "Denied", "LoadFailed", "RemoveFailed", "TimedOut", "Deadlock", "InvalidName", "InvalidPolicy", "InvalidSetting",
    "JournalUnreadable",
    "NotPermitted",
}  # fmt: skip


def client(daemon: Daemon) -> Any:
    return varlink.Client.new_with_address(f"unix:{daemon.api_path}")


def reference(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "varlink.cli", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# The reference client


def test_resolve_says_what_would_be_loaded_and_loads_nothing(daemon: Daemon) -> None:
    with daemon.api() as api:
        plan = api.call("Resolve", name="top")["plan"]
        assert (plan["name"], plan["modules"]) == ("top", ["dep", "top"])
        [target] = plan["targets"]
        assert (target["module"], target["verdict"]) == ("top", "load")
        assert [(step["module"], step["needed_by"], step["after"]) for step in target["steps"]] == [
            ("dep", "top", []),
            ("top", None, [0]),
        ]
        assert api.call("ListModules") == {"modules": []}
        api.call("RequestModule", name="top")
        assert api.call("Resolve", name="alias-top")["plan"]["targets"][0]["verdict"] == "already-live"


def test_marks_hold_for_the_module_that_is_there(daemon: Daemon) -> None:
    def marked() -> dict[str, bool]:
        return {module["name"]: module["autoclean"] for module in api.call("ListModules")["modules"]}

    with daemon.api() as api:
        api.call("RequestModule", name="top")
        assert api.call("MarkAutoclean", names=["top", "absent"]) == {"marked": ["top"]}
        assert marked() == {"dep": False, "top": True}
        api.call("RemoveModule", name="top")
        api.call("RequestModule", name="top")
        assert marked() == {"dep": False, "top": False}
    assert [event["modules"] for event in daemon.events(event="autoclean")] == [["top"]]


def test_get_info(daemon: Daemon) -> None:
    with client(daemon) as made, made.open("org.varlink.service") as service:
        info = service.GetInfo()
        assert info["product"] == "kmodd"
        assert set(info["interfaces"]) == {"org.varlink.service", "io.kmodd"}
        assert set(info) == {"vendor", "product", "version", "url", "interfaces"}


def test_interface_description_parses(daemon: Daemon) -> None:
    with client(daemon) as made:
        interface = made.get_interface("io.kmodd")
        assert interface.name == "io.kmodd"
        assert {
            name for name, member in interface.members.items() if member.__class__.__name__ == "_Method"
        } == METHODS
        assert {
            name for name, member in interface.members.items() if member.__class__.__name__ == "_Error"
        } == ERRORS


def test_methods(daemon: Daemon) -> None:
    with client(daemon) as made, made.open("io.kmodd") as kmodd:
        result = kmodd.RequestModule(name="top")["result"]
        assert (result["outcome"], result["source"]) == ("loaded", "api")
        assert (
            kmodd.RequestModule(name="plain", source="cli", timeout=10.5, wait=True)["result"]["source"]
            == "cli"
        )
        assert kmodd.RequestModule(name="slow", wait=False)["result"]["outcome"] is None
        assert [module["name"] for module in kmodd.ListModules()["modules"]][:2] == ["dep", "top"]
        assert kmodd.RemoveModule(name="top")["removed"] == ["top"]
        assert kmodd.GetStatus()["status"]["state"] == "running"
        assert kmodd.SetSetting(key="fallback", value="deny") == {}
        settings = {item["key"]: item for item in kmodd.GetSettings()["settings"]}
        assert settings["fallback"]["value"] == "deny"
        assert settings["fallback"]["default"] == "modprobe"
        assert all(set(item) == {"key", "value", "default", "meaning"} for item in settings.values())


@pytest.mark.parametrize(
    ("method", "parameters", "error", "fields"),
    [
        ("RequestModule", {"name": "absent"}, "NotFound", {"name", "error", "result"}),
        ("RequestModule", {"name": "bad"}, "LoadFailed", {"name", "status", "error", "result"}),
        ("RequestModule", {"name": "long", "timeout": 0.01}, "TimedOut", {"name", "error", "result"}),
        ("RequestModule", {"name": "long", "timeout": -5}, "TimedOut", {"name", "error", "result"}),
        ("RequestModule", {"name": "a b"}, "InvalidName", {"name", "error", "result"}),
        ("RequestModule", {"name": "\ud800"}, "InvalidName", {"name", "error", "result"}),
        ("RequestModule", {"name": ""}, "InvalidName", {"name", "error", "result"}),
        ("RemoveModule", {"name": "absent"}, "NotFound", {"name", "error"}),
        ("Resolve", {"name": "absent"}, "NotFound", {"name", "error"}),
        ("Resolve", {"name": "a b"}, "InvalidName", {"name", "error"}),
        ("MarkAutoclean", {"names": ["plain", "-r"]}, "InvalidName", {"name", "error"}),
        ("RemoveModule", {"name": "-r"}, "InvalidName", {"name", "error"}),
        ("RemoveModule", {"name": "dep"}, "RemoveFailed", {"name", "status", "error"}),
        ("SetSetting", {"key": "colour", "value": 1}, "InvalidSetting", {"key", "error"}),
        ("SetSetting", {"key": "load_timeout", "value": "x"}, "InvalidSetting", {"key", "error"}),
        ("SetSetting", {"key": "modprobe_path", "value": "/\ud800"}, "InvalidSetting", {"key", "error"}),
    ],
)
def test_errors_have_their_fields(
    daemon: Daemon, method: str, parameters: dict[str, Any], error: str, fields: set[str]
) -> None:
    daemon.kmodd("request", "top")
    with client(daemon) as made, made.open("io.kmodd") as kmodd:
        with pytest.raises(varlink.VarlinkError) as raised:
            getattr(kmodd, method)(**parameters)
        assert raised.value.error() == f"io.kmodd.{error}"
        found = raised.value.parameters()
        assert {key for key, value in found.items() if value is not None} == fields
        if "status" in fields:
            assert found["status"] == {"bad": -19, "dep": -11}[parameters["name"]]
        if "result" in fields:
            assert found["result"]["error"] == found["error"]
        assert kmodd.GetStatus()["status"]["state"] == "running", "the connection stays of use"


def test_log_with_more(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain")
    with client(daemon) as made, made.open("io.kmodd") as kmodd:
        events = [reply.get("event") for reply in kmodd.Log(_more=True)]
        assert [event and event["event"] for event in events] == ["daemon", "load", "request", None]
    with client(daemon) as made, made.open("io.kmodd") as kmodd:
        stream = kmodd.Log(_more=True, follow=True, name="top", outcome="loaded")
        daemon.kmodd("request", "top")
        assert next(stream)["event"]["event"] == "load"
        assert next(stream)["event"]["event"] == "request"
        stream.close()


def test_log_without_more(daemon: Daemon) -> None:
    with daemon.api() as api, pytest.raises(Reply) as raised:
        api.call("Log")
    assert raised.value.error == "org.varlink.service.ExpectedMore"


def test_not_permitted(daemon: Daemon) -> None:
    with identity(NOBODY):
        api = daemon.api()
    with api:
        for method, parameters in (
            ("RequestModule", {"name": "plain"}),
            ("RemoveModule", {"name": "plain"}),
            ("SetSetting", {"key": "fallback", "value": "deny"}),
        ):
            with pytest.raises(Reply) as raised:
                api.call(method, **parameters)
            assert raised.value.error == "io.kmodd.NotPermitted"
            assert set(raised.value.parameters) == {"error"}
        api.send("Log", more=True)
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.NotPermitted"
        assert api.call("ListModules") == {"modules": []}


def test_reference_command_line(daemon: Daemon) -> None:
    address = f"unix:{daemon.api_path}"
    info = reference(daemon, "info", address)
    assert info.returncode == 0, info.stderr
    assert "io.kmodd" in info.stdout
    described = reference(daemon, "help", f"{address}/io.kmodd")
    assert described.returncode == 0, described.stderr
    assert "method RequestModule(" in described.stdout
    called = reference(daemon, "call", f"{address}/io.kmodd.RequestModule", '{"name": "plain"}')
    assert called.returncode == 0, called.stderr
    assert json.loads(called.stdout)["result"]["outcome"] == "loaded"
    failed = reference(daemon, "call", f"{address}/io.kmodd.RequestModule", '{"name": "absent"}')
    assert "io.kmodd.NotFound" in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"method": "io.kmodd.Nothing"}, "org.varlink.service.MethodNotFound"),
        ({"method": "io.other.Nothing"}, "org.varlink.service.InterfaceNotFound"),
        ({"method": "io.kmodd.__init__"}, None),
        ({"method": "io.kmodd._status"}, None),
        ({"method": "io.kmodd.RequestModule"}, "org.varlink.service.InvalidParameter"),
        (
            {"method": "io.kmodd.RequestModule", "parameters": {"name": 5}},
            "org.varlink.service.InvalidParameter",
        ),
        (
            {"method": "io.kmodd.RequestModule", "parameters": {"name": "plain", "source": "kernel"}},
            "org.varlink.service.InvalidParameter",
        ),
        (
            {"method": "io.kmodd.RequestModule", "parameters": {"name": "plain", "timeout": "1"}},
            "org.varlink.service.InvalidParameter",
        ),
        ({"method": "nodots"}, None),
        ({"method": 5}, None),
        ({}, None),
        ({"method": "io.kmodd.GetStatus", "parameters": []}, None),
    ],
)
def test_calls_that_are_none(daemon: Daemon, message: dict[str, Any], error: str | None) -> None:
    with daemon.api() as api:
        api.sock.sendall(json.dumps(message).encode() + b"\0")
        reply = api.message()
        assert reply is None or "error" in reply
        if error is not None:
            assert reply is not None
            assert reply["error"] == error
    assert daemon.kmodd("status").returncode == 0
    assert daemon.status()["requests"]["total"] == 0


def test_oneway(daemon: Daemon) -> None:
    with daemon.api() as api, daemon.follow() as log:
        api.send("RequestModule", oneway=True, name="plain")
        api.send("RequestModule", oneway=True, name="absent")
        assert api.call("GetStatus")["status"]["state"] == "running", "the first reply is this call's"
        assert log.event(event="request", name="plain")["outcome"] == "loaded"
        assert log.event(event="request", name="absent")["outcome"] == "not-found"


# Connections that do what no good client does


@pytest.mark.parametrize(
    "sent",
    [
        b"no json\0",
        b"{\0",
        b"\0",
        b"[]\0",
        b"null\0",
        b"\xff\xfe\0",
        b'{"method": "io.kmodd.GetStatus"\0',
        b"[" * 60000 + b"\0",
        b'{"a":' * 10000 + b"\0",
        b"1" * 5000 + b"\0",
    ],
    ids=["words", "brace", "empty", "list", "null", "bytes", "cut", "deep-list", "deep-object", "digits"],
)
def test_malformed_json_drops_the_connection(daemon: Daemon, sent: bytes) -> None:
    with daemon.api() as other:
        with identity(NOBODY):
            api = daemon.api()
        with api:
            api.sock.settimeout(3)
            api.sock.sendall(sent)
            try:
                reply = api.message()
            except TimeoutError:
                pytest.fail("neither an error nor the end of the connection: the caller waits for ever")
            assert reply is None or "error" in reply
        assert other.call("RequestModule", name="plain")["result"]["outcome"] == "loaded"
    wait_until(lambda: daemon.status()["threads"] == 1, "no thread is left")


@pytest.mark.parametrize("size", [65537, 1 << 20, 16 << 20])
def test_message_that_does_not_end(daemon: Daemon, size: int) -> None:
    before = daemon.rss()
    with daemon.api() as other:
        with identity(NOBODY):
            api = daemon.api()
        with api:
            left = size
            try:
                while left > 0:
                    left -= api.sock.send(b"x" * min(left, 65536))
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert api.message() is None
        assert other.call("RequestModule", name="plain")["result"]["outcome"] == "loaded"
    assert daemon.rss() - before < 8 << 20


def test_longest_message(daemon: Daemon) -> None:
    """The longest name with each byte escaped is within what a call may have."""
    name = "n" * 4096
    escaped = "".join(f"\\u{ord(char):04x}" for char in name)
    with daemon.api() as api:
        api.sock.sendall(
            b'{"method":"io.kmodd.RequestModule","parameters":{"name":"%s"}}\0' % escaped.encode()
        )
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.NotFound"
        padding = " " * 40000
        api.sock.sendall(b'{"method":"io.kmodd.GetStatus"%s}\0' % padding.encode())
        assert api.receive()["status"]["pid"] == daemon.pid


def test_bytes_one_by_one(daemon: Daemon) -> None:
    with daemon.api() as api:
        for byte in b'{"method":"io.kmodd.GetStatus"}\0':
            api.sock.send(bytes([byte]))
        assert api.receive()["status"]["pid"] == daemon.pid


def test_pipelined_calls(daemon: Daemon) -> None:
    """Calls on one connection are answered one after the other, in order."""
    with daemon.api() as api:
        api.send("RequestModule", name="slow")
        for number in range(50):
            api.send("RequestModule", name="plain" if number % 2 else "absent")
        api.send("GetStatus")
        assert api.receive()["result"]["name"] == "slow"
        for number in range(50):
            if number % 2:
                assert api.receive()["result"]["name"] == "plain"
            else:
                with pytest.raises(Reply):
                    api.receive()
        assert api.receive()["status"]["requests"]["total"] == 51


def test_many_pipelined_calls_at_once(daemon: Daemon) -> None:
    """More than 64 KiB of whole calls in one go are no message that is too long."""
    call = b'{"method":"io.kmodd.RequestModule","parameters":{"name":"plain"}}\0'
    count = 3000
    with daemon.api() as api, daemon.api() as sender:
        sender.sock.close()
        api.sock.setblocking(False)
        data, got, end = call * count, 0, time.monotonic() + PATIENCE
        buffer = b""
        while got < count:
            assert time.monotonic() < end
            if data:
                with contextlib.suppress(BlockingIOError):
                    data = data[api.sock.send(data) :]
            try:
                received = api.sock.recv(1 << 20)
            except BlockingIOError:
                continue
            assert received, f"dropped after {got} replies"
            buffer += received
            got += buffer.count(b"\0")
            buffer = buffer.rpartition(b"\0")[2]
    assert daemon.status()["requests"]["total"] == count


def test_peer_that_calls_and_does_not_read(daemon: Daemon) -> None:
    """It costs no memory, is not answered further until it reads, and then has every reply."""
    call = b'{"method":"io.kmodd.GetStatus"}\0'
    with daemon.api() as other, daemon.api() as api:
        other.call("GetStatus")
        before = daemon.rss()
        api.sock.settimeout(0.5)
        made = 0
        with contextlib.suppress(TimeoutError):
            while made < 200_000:
                api.sock.sendall(call)
                made += 1
        assert made < 200_000, "the daemon takes calls without an end"
        assert other.call("RequestModule", name="plain")["result"]["outcome"] == "loaded"
        assert daemon.rss() - before < 2 << 20
        api.sock.settimeout(PATIENCE)
        for _ in range(made):
            assert api.receive()["status"]["pid"] == daemon.pid


def test_peer_that_never_stops_calling_does_not_have_the_daemon_for_itself(daemon: Daemon) -> None:
    """Neither with many short calls nor with what is none: others are served all the while."""
    ended = threading.Event()

    def flood(sock: socket.socket, data: bytes) -> None:
        sock.settimeout(0.1)
        while not ended.is_set():
            try:
                sock.send(data)
            except TimeoutError:
                continue
            except OSError:
                return

    with identity(NOBODY):
        peers = [daemon.api() for _ in range(2)]
    oneway = b'{"method":"io.kmodd.GetStatus","oneway":true}\0' * 1000
    threads = [
        threading.Thread(target=flood, args=(peer.sock, data))
        for peer, data in zip(peers, (oneway, b" " * 65000), strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for number in range(50):
            with daemon.helper(b"plain" if number % 2 else b"absent") as helper:
                assert helper.packets() == [b"s\0" if number % 2 else b"s\x01"]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        for peer in peers:
            peer.sock.close()


def test_too_many_connections_of_a_user(daemon: Daemon) -> None:
    with identity(NOBODY):
        crowd = [daemon.api() for _ in range(300)]
    try:
        served = 0
        for api in crowd:
            try:
                api.send("GetStatus")
                served += api.message() is not None
            except BrokenPipeError:
                pass
        assert served == 64
        with identity(1234):
            other = daemon.api()
        with other:
            assert other.call("GetStatus")["status"]["pid"] == daemon.pid, "another user is not harmed"
        assert daemon.kmodd("request", "plain").returncode == 0
        with daemon.helper(b"top") as helper:
            assert helper.packets() == [b"s\0"]
        assert len(daemon.descriptors()) < 100
    finally:
        for api in crowd:
            api.sock.close()
    wait_until(lambda: served_again(daemon), "room again when they have gone")


def served_again(daemon: Daemon) -> bool:
    with identity(NOBODY):
        api = daemon.api()
    with api:
        try:
            api.send("GetStatus")
        except BrokenPipeError:
            return False
        return api.message() is not None


def test_too_many_connections_of_all_users(daemon: Daemon) -> None:
    crowd: list[Api] = []
    for uid in range(2000, 2006):
        with identity(uid):
            crowd += [daemon.api() for _ in range(60)]
    try:
        served = 0
        for api in crowd:
            try:
                api.send("GetStatus")
                served += api.message() is not None
            except BrokenPipeError:
                pass
        assert served == 256
        roots = [daemon.api() for _ in range(300)]
        for api in roots:
            assert api.call("GetStatus")["status"]["pid"] == daemon.pid, "root is not counted"
        crowd += roots
        with daemon.helper(b"plain") as helper:
            assert helper.packets() == [b"s\0"]
    finally:
        for api in crowd:
            api.sock.close()


def test_client_that_is_killed_while_its_request_waits(daemon: Daemon) -> None:
    with daemon.follow() as log, daemon.begin("request", "slow") as process:
        wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL
        assert log.event(event="load", name="slow")["outcome"] == "loaded"
        assert log.event(event="request", name="slow")["outcome"] == "loaded"
    assert "slow" in daemon.live()
    wait_until(lambda: daemon.status()["requests"]["waiting"] == 0, "nothing waits any more")


def sockets(daemon: Daemon) -> int:
    return sum(item.startswith("socket:") for item in daemon.descriptors())


@pytest.mark.parametrize("pipelined", [False, True])
def test_connection_of_a_client_that_vanishes_is_closed(daemon: Daemon, *, pipelined: bool) -> None:
    """At once where nothing was pipelined; else when what is served ends."""
    before = sockets(daemon)
    with daemon.api() as api:
        api.send("RequestModule", name="slow" if pipelined else "long")
        if pipelined:
            api.send("GetStatus")
        wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
    wait_until(lambda: sockets(daemon) == before, "its sockets are closed")


def test_half_closed_connection(daemon: Daemon) -> None:
    """A client that says it will send no more still gets its answer."""
    with daemon.api() as api:
        api.send("GetStatus")
        api.sock.shutdown(socket.SHUT_WR)
        assert api.receive()["status"]["pid"] == daemon.pid
        assert api.message() is None
    with daemon.follow() as log, daemon.api() as api:
        api.send("RequestModule", name="slow")
        api.sock.shutdown(socket.SHUT_WR)
        assert api.receive()["result"]["outcome"] == "loaded"
        assert log.event(event="load")["outcome"] == "loaded"
    with daemon.api() as api:
        api.sock.shutdown(socket.SHUT_WR)
        assert api.message() is None


def test_half_closed_for_reading(daemon: Daemon) -> None:
    with daemon.api() as api:
        api.sock.shutdown(socket.SHUT_RD)
        api.send("RequestModule", name="plain", wait=False)
        wait_until(lambda: daemon.status()["requests"]["total"] == 1, "the request is taken")
    assert daemon.kmodd("status").returncode == 0


def test_many_connections_that_come_and_go(daemon: Daemon) -> None:
    before = sockets(daemon)
    for _ in range(500):
        daemon.api().sock.close()
    for _ in range(100):
        with daemon.api() as api:
            api.sock.sendall(b'{"method":"io.kmodd.Get')
    wait_until(lambda: sockets(daemon) == before, "all of them are closed")


def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP connection whose last close(2) takes as long as its owner likes, here for ever; and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _address = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 65536)
    return ours, theirs


def test_descriptors_that_are_sent_along_do_not_reach_the_daemon(daemon: Daemon) -> None:
    """The kernel refuses them (since 6.16), or the connection ends; nobody waits for their close."""
    with daemon.api() as other:
        other.call("GetStatus")
        before = len(daemon.descriptors())
        ours, theirs = lingering()
        with theirs:
            with identity(NOBODY):
                api = daemon.api()
            with api, contextlib.suppress(PermissionError):
                socket.send_fds(api.sock, [b'{"method":"io.kmodd.GetStatus"}\0'], [ours.fileno()] * 4)
                # Not at once: in between it is the daemon's alone.
                os.close(ours.detach())
                assert api.message() is None
            with daemon.helper(b"plain") as helper:
                assert helper.packets() == [b"s\0"]
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        ours.close()
        wait_until(lambda: len(daemon.descriptors()) <= before, "nothing of it is left")


def test_refused_is_not_served_later(make: Callable[..., Daemon]) -> None:
    daemon = make().start()
    with identity(NOBODY):
        crowd = [daemon.api() for _ in range(65)]
    try:
        assert refused(crowd[64].sock)
    finally:
        for api in crowd:
            api.sock.close()


def test_refusals_do_not_flood_the_log(daemon: Daemon) -> None:
    """Anybody may connect as often as he likes; what is logged of it must have an end, as of failed requests."""
    with identity(NOBODY):
        crowd = [daemon.api() for _ in range(64)]
        for _ in range(1000):
            with daemon.api() as api:
                assert refused(api.sock)
    for api in crowd:
        api.sock.close()
    daemon.barrier()
    assert len(daemon.errors().splitlines()) < 200
