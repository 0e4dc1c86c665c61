"""The demo: it runs, is right about what it shows, and is plain text in a pipe."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest

from kmodd.lab.demo import stick
from kmodd.lab.demo.page import fitted

ROW = re.compile(r" *(?P<time>\d+\.\d{3})  (?P<source>\w+) +(?P<name>\S+) +(?P<outcome>\S+)  (?P<rest>.*)")

HEADINGS = [
    "kmodd, the on-demand kernel-module loader, at work",
    "1. Mount a memory stick",
    "2. Open seven sockets at once",
    "3. kmodd request dm_crypt: a load that needs other loads",
    "4. Mount what does not exist",
    "5. Kill kmodd in the middle of a load",
    "6. Start kmodd again",
    "Summary",
]

# Step by step: what it shows, where the order is certain.
IN_TURN = {
    1: [
        ("kernel", "char-major-10-237", "loaded"),
        ("kernel", "fs-vfat", "loaded"),
        ("kernel", "nls_cp437", "loaded"),
    ],
    4: [("kernel", "fs-nosuchfs", "not-found")],
    5: [],
    6: [("kernel", "net-pf-35", "loaded")],
}
# And where it is not: sockets opened at once, nested requests whose records are complete late.
IN_ANY_ORDER = {
    2: {
        ("kernel", "net-pf-9", "loaded"),
        ("kernel", "net-pf-29", "loaded"),
        ("kernel", "can-proto-1", "loaded"),
        ("kernel", "net-pf-40", "loaded"),
        ("kernel", "net-pf-26", "loaded"),
        ("kernel", "net-pf-2-proto-132", "loaded"),
    },
    3: {
        ("cli", "dm_crypt", "loaded"),
        ("kernel", "crypto-cbc(aes)", "not-found"),
        ("kernel", "crypto-cbc(aes)-all", "not-found"),
        ("kernel", "crypto-cbc", "loaded"),
    },
}


def rows(lines: Sequence[str]) -> list[tuple[str, str, str]]:
    found = filter(None, map(ROW.fullmatch, lines))
    return [(row["source"], row["name"], row["outcome"]) for row in found]


@pytest.mark.real
def test_demo() -> None:
    python = [sys.executable, "-m"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [*python, "kmodd", "lab", "--timeout", "150", "--", *python, "kmodd.lab.demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=environment,
    )
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b""), text
    lines = text.splitlines()
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(map(len, lines)) <= 100
    assert "FAILED" not in text

    assert [line for line in lines if line in HEADINGS] == HEADINGS
    places = [lines.index(heading) for heading in HEADINGS]
    sections = [lines[start:end] for start, end in pairwise([*places, len(lines)])]
    for number, expected in IN_TURN.items():
        shown = rows(sections[number])
        assert [row for row in shown if row in expected] == expected
        assert len(shown) == len(expected) + shown.count(("kernel", "nls_iso8859-1", "loaded"))
    for number, together in IN_ANY_ORDER.items():
        assert together <= set(rows(sections[number]))
    for section in sections[1:7]:
        assert sum(line.startswith("ok  ") for line in section) == 1

    indented = [line for line in lines if re.search(r"  kernel    \S", line)]
    assert sorted(line.split()[2] for line in indented) == [
        "crypto-cbc",
        "crypto-cbc(aes)",
        "crypto-cbc(aes)-all",
    ]
    assert re.search(r"^Result +all 6 steps went as they should$", text, re.MULTILINE)
    assert re.search(r"^Fallback +1 served by the real modprobe", text, re.MULTILINE)


def test_outside_of_a_lab_nothing_is_done() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kmodd.lab.demo"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "kmodd lab -- python -m kmodd.lab.demo" in done.stderr


@pytest.mark.parametrize(
    ("modules", "prefix", "cell"),
    [
        ([], "", "-"),
        (["fat", "vfat"], "", "fat vfat"),
        (["udp_tunnel", "crc_ccitt", "ipv6", "sctp"], "", "+2 ipv6 sctp"),
        (["x25"], "shared: ", "shared: x25"),
        (["xfrm_algo", "af_key"], "shared: ", "+1 af_key"),
        (["a_module_of_a_long_name"], "", "a_module_of_~"),
    ],
)
def test_modules_fit_in_their_column(modules: list[str], prefix: str, cell: str) -> None:
    assert fitted(modules, 13, prefix) == cell.ljust(13)


def test_image_is_a_fat_file_system() -> None:
    image = stick.image(b"content")
    assert len(image) == 64 * 1024
    assert image[510:512] == b"\x55\xaa"
    assert image[3 * 512 : 3 * 512 + 7] == b"content"
