"""kmodd's broker and loader with a tree of its own, in a process with bench/native/kernel.c preloaded.

Reads a line, loads every module of the tree at once, each as a request, and prints a line: the nanoseconds
from the first request to the last status, those of decompressing the same files one after the other, and how
many were loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime

from kmodd.broker.broker import Broker
from kmodd.broker.inprocess import InProcessLoader
from kmodd.broker.installed import Installed
from kmodd.broker.modules import ModuleLoads
from kmodd.image import compressed
from kmodd.kernel import init
from kmodd.kernel.interface import BlockedTask
from kmodd.kernel.linux import LinuxKernel
from kmodd.model import Result, Source
from kmodd.record.recorder import Recorder
from kmodd.settings import Settings
from kmodd.tree import snapshot
from kmodd.tree.snapshot import Snapshot


class _Tree(Installed):
    """What is installed in another directory, and does not change."""

    def __init__(self, directory: str) -> None:
        super().__init__(lambda: "", lambda: None)
        self._taken = snapshot.take(directory, only_trusted=False)

    async def current(self) -> Snapshot:
        """Return it."""
        return self._taken

    def at_once(self) -> Snapshot:
        """Return it."""
        return self._taken


async def _blocked(_sessions: Collection[int], _threads: Collection[int]) -> list[BlockedTask]:
    return []


async def _once(tree: _Tree) -> tuple[int, int]:
    """Load all; return nanoseconds, and how many came in."""
    settings = Settings()
    recorder = Recorder(now=lambda: datetime.now(UTC))
    kernel = LinuxKernel()
    # Our own root for PID 1's, which a container may hide: the same system calls.
    loads = ModuleLoads(kernel, lambda: init.enter(os.getpid()), recorder.next_id)
    loader = InProcessLoader(settings, kernel, tree, loads)
    broker = Broker(loader, settings, recorder, _blocked)
    names = list((await tree.current()).index.modules())
    statuses: list[int] = []
    results: list[Result] = []
    end = 0
    over = asyncio.Event()

    def told(status: int) -> None:
        nonlocal end
        statuses.append(status)
        end = time.perf_counter_ns()

    def ended(result: Result) -> None:
        results.append(result)
        if len(results) == len(names):
            over.set()

    begin = time.perf_counter_ns()
    for name in names:
        broker.submit(name.encode(), Source.CLI, on_status=told, on_result=ended)
    await over.wait()
    return end - begin, sum(len(result.modules or ()) for result in results)


async def _decompressed(tree: _Tree) -> int:
    index = (await tree.current()).index
    paths = [path for module in index.modules() if (path := index.path(module)) is not None]
    begin = time.perf_counter_ns()
    for path in paths:
        compressed.read_module(path)
    return time.perf_counter_ns() - begin


def main() -> None:
    """Serve one directory, the only argument, until standard input ends."""
    tree = _Tree(sys.argv[1])
    for line in sys.stdin:
        if line.strip() == "load":
            took, loaded = asyncio.run(_once(tree))
        else:
            took, loaded = asyncio.run(_decompressed(tree)), 0
        print(json.dumps([took, loaded]), flush=True)


if __name__ == "__main__":
    main()
