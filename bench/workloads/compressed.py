"""Row 6: 200 compressed modules, from the request to the image that a kernel would take.

On the machine itself, with a made-up kernel in the place of the last system call of both
(bench/native/kernel.c): what is measured is what user space does, on as many processors as there are. The
limit is decompression alone, one file after the other, by the library that kmodd has.
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench.bed import Bed
from bench.host import ROOT, tool
from bench.measured import Check, Measured, Ratio, ratio
from kmodd.errors import KmoddError
from kmodd.tree.index import Index

WHAT = "row 6: a tree of 200 compressed modules (.xz, .zst), read and decompressed, beside modprobe -a"

OF_MODPROBE = 0.6
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
"""As the kernel's own scripts/Makefile.modinst has it."""


def run(bed: Bed) -> Measured:
    """Load all of a tree in turns."""
    rounds, count = (1, 20) if bed.quick else (9, 200)
    plain = Index(str(bed.host.tree.modules))
    modules = [module for module in plain.modules() if not plain.dependencies(module)]
    chosen = modules[:: max(len(modules) // count, 1)][:count]
    paths = [Path(path) for module in chosen if (path := plain.path(module)) is not None]
    ratios: list[Ratio] = []
    loaded = asked = 0
    for suffix, compress in (("xz", _xz), ("zst", _zst)):
        bed.say(f"compressed: making {len(paths)} modules .ko.{suffix}")
        root = bed.host.directory / suffix
        directory = _tree(root, bed.host.tree.release, paths, suffix, compress)
        took: dict[str, list[list[int]]] = defaultdict(list)
        kernel = {**os.environ, "LD_PRELOAD": bed.host.program("kernel")}
        modprobe = [tool("modprobe"), "-d", str(root), "-S", directory.name, "-a", *chosen]
        argv = [sys.executable, "-m", "bench.loading", str(directory)]
        with subprocess.Popen(
            argv, cwd=ROOT, env=kernel, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as ours:
            for turn in range(rounds + 1):
                bed.say(f"compressed: .{suffix}: round {turn} of {rounds}")
                nanoseconds, here = _ask(ours, "load")
                alone, _none = _ask(ours, "decompress")
                begin = time.perf_counter_ns()
                subprocess.run(modprobe, env=kernel, check=True, stdin=subprocess.DEVNULL)
                theirs = time.perf_counter_ns() - begin
                if turn:  # the first one warms the caches of all
                    for who, value in (("ours", nanoseconds), ("alone", alone), ("modprobe", theirs)):
                        took[who].append([value])
                loaded, asked = loaded + here, asked + len(paths)
            assert ours.stdin is not None
            ours.stdin.close()
        case = f"{len(paths)} modules .ko.{suffix}"
        ratios.append(ratio(case, "kmodd / modprobe -a", took["ours"], took["modprobe"], limit=OF_MODPROBE))
        ratios.append(ratio(case, "kmodd / decompression alone", took["ours"], took["alone"]))
    check = Check("every module was loaded", loaded == asked, {"asked": asked, "loaded": loaded})
    return Measured(tuple(ratios), (check,))


def _ask(process: subprocess.Popen[str], what: str) -> tuple[int, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise KmoddError("the loader of the bench has ended")
    nanoseconds, loaded = json.loads(answer)
    return nanoseconds, loaded


def _tree(
    root: Path, release: str, paths: list[Path], suffix: str, compress: Callable[[bytes], bytes]
) -> Path:
    """Make a tree of compressed copies, with an index; return its directory."""
    directory = root / "lib/modules" / release
    (directory / "kernel").mkdir(parents=True)
    for path in paths:
        (directory / f"kernel/{path.name}.{suffix}").write_bytes(compress(path.read_bytes()))
    subprocess.run([tool("depmod"), "-b", str(root), release], check=True, capture_output=True)
    return directory


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=_FILTERS)


def _zst(data: bytes) -> bytes:
    done = subprocess.run([tool("zstd"), "-q", "-c"], input=data, capture_output=True, check=True)
    return done.stdout
