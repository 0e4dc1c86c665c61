"""Fuzz one target under atheris: python tests/fuzz/fuzz.py TARGET [libFuzzer option or corpus directory]…

The corpus is the target's seeds and regressions, and what is in the directories; what reaches something new
is written to the first of them.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from typing import NoReturn

import atheris

# This directory would hide the package of the same name.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

with atheris.instrument_imports(include=["kmodd.tree", "kmodd.image", "kmodd.names"]):
    from fuzz.targets import TARGETS, regressions


def main() -> None:
    if sys.argv[1:2] == [] or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {{{','.join(TARGETS)}}} [OPTION | DIRECTORY]...")
    # In memory, where a target that writes files is fast.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kmodd-fuzz-", dir=shared) as directory:
        # A fuzzer ends without any cleaning up.
        child = os.fork()
        if child == 0:
            fuzz(sys.argv[1], sys.argv[2:], directory)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(status if status >= 0 else 128 - status)


def fuzz(name: str, options: list[str], directory: str) -> NoReturn:
    """Does not come back."""
    tempfile.tempdir = directory
    target = TARGETS[name]
    corpus = f"{directory}/corpus"
    os.mkdir(corpus)
    for number, data in enumerate((*target.seeds, *(path.read_bytes() for path in regressions(name)))):
        with open(f"{corpus}/{number:03}", "wb") as file:
            file.write(data)
    argv = [sys.argv[0], f"-max_len={target.longest}", "-len_control=0", "-timeout=30", "-rss_limit_mb=2048"]
    if target.words:
        argv.append(f"-dict={directory}/words")
        with open(f"{directory}/words", "w", encoding="ascii") as file:
            file.writelines('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    argv += [*options, corpus]
    atheris.Setup(argv, target.run)
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    main()
