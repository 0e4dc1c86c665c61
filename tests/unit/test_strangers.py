"""Descriptors that a stranger sends along, where the kernel does not refuse them itself (before 6.16)."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from kmodd.sources.strangers import StrangerSocket

Pair = tuple[StrangerSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with theirs, StrangerSocket(ours.family, ours.type, ours.proto, fileno=ours.detach()) as stranger:
        stranger.setblocking(False)
        yield stranger, theirs


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_data_comes_as_it_was_sent(pair: Pair) -> None:
    stranger, theirs = pair
    theirs.send(b"one")
    theirs.send(b"two")
    assert stranger.recvmsg(4, socket.CMSG_LEN(16))[:2] == (b"onet", [])
    assert stranger.recvmsg(100)[0] == b"wo"
    with pytest.raises(BlockingIOError):
        stranger.recvmsg(100)
    theirs.shutdown(socket.SHUT_WR)
    assert stranger.recvmsg(100)[0] == b""


def test_descriptors_are_not_taken_but_end_the_connection(pair: Pair) -> None:
    stranger, theirs = pair
    before = files()
    theirs.send(b"a call before")
    reading, writing = os.pipe()
    socket.send_fds(theirs, [b"call"], [reading])
    os.close(reading)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            stranger.recvmsg(100)
    poll = select.poll()
    poll.register(writing, 0)
    assert poll.poll(0) == [], "the only reader is in the socket, and still there"
    stranger.close()
    # Closed by a thread: the pipe has no reader any more then.
    assert poll.poll(20_000) == [(writing, select.POLLERR)]
    os.close(writing)
    assert files() <= before


def test_descriptors_behind_much_data_do_not_reach_a_close(pair: Pair) -> None:
    stranger, theirs = pair
    theirs.setblocking(False)
    theirs.send(b"x" * 100_000)
    reading, writing = os.pipe()
    socket.send_fds(theirs, [b"call"], [reading])
    os.close(reading)
    stranger.close()
    poll = select.poll()
    poll.register(writing, 0)
    assert poll.poll(20_000) == [(writing, select.POLLERR)]
    os.close(writing)
    with pytest.raises(BrokenPipeError):
        theirs.send(b"more")
