"""The steps: each does something that needs modules, and checks that it went as the page says.

A step returns what it has shown, in a sentence, and raises StepFailed, OSError or KmoddError otherwise.
"""

import errno
import socket
import subprocess
import sys
import threading
import time

from kmodd.lab.demo import stick
from kmodd.lab.demo.outage import kill_daemon, start_again
from kmodd.lab.demo.scene import (
    PATIENCE,
    WORK,
    Demo,
    Step,
    StepFailed,
    live_modules,
    require,
    require_live,
    require_outcomes,
)


def mount_stick(demo: Demo) -> str:
    """A loop device, a file system and its character sets: one after the other."""
    before = len(demo.follower.requests)
    content = b"Every module for this came in when it was needed."
    device = stick.plug_in(content)
    target = WORK / "stick"
    target.mkdir(parents=True)
    stick.mount(device, str(target), "vfat")
    seen = (target / stick.FILE).read_bytes()
    require(seen == content, f"{stick.FILE} on the mounted stick holds {seen!r}")
    told = demo.told(before)
    require_outcomes(told, {"char-major-10-237": "loaded", "fs-vfat": "loaded", "nls_cp437": "loaded"})
    require_live(["loop", "fat", "vfat", "nls_cp437"])
    return f"{device} is mounted; {stick.FILE} on it reads: {content.decode()}"


_SOCKETS = [
    *[(socket.AF_X25, socket.SOCK_SEQPACKET, 0)] * 3,
    (socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW),
    (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    (socket.AF_LLC, socket.SOCK_STREAM, 0),
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
]


def open_sockets(demo: Demo) -> str:
    """Seven sockets at once; three of them want the same."""
    before = len(demo.follower.requests)
    start = threading.Barrier(len(_SOCKETS))
    failures: list[str] = []

    def open_one(family: int, kind: int, protocol: int) -> None:
        start.wait()
        try:
            socket.socket(family, kind, protocol).close()
        except OSError as error:
            failures.append(f"socket({family}, {kind}, {protocol}): {error.strerror}")

    threads = [threading.Thread(target=open_one, args=arguments) for arguments in _SOCKETS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(not failures, "; ".join(failures))
    told = demo.told(before)
    names = ["net-pf-29", "can-proto-1", "net-pf-40", "net-pf-26", "net-pf-2-proto-132"]
    require_outcomes(told, dict.fromkeys(names, "loaded"))
    require_live(["x25", "can", "can_raw", "vsock", "llc2", "sctp"])
    # One that comes late finds x25 live, as it may.
    loads = [request for request in told if request.modules == ("x25",) and not request.shared]
    require(len(loads) == 1, f"x25 was loaded {len(loads)} times")
    return f"All {len(_SOCKETS)} sockets could be opened; three of them needed x25, loaded once."


def load_nested(demo: Demo) -> str:
    """A module during whose load the kernel asks for more."""
    demo.outer = "dm_crypt"
    before = len(demo.follower.requests)
    command = [sys.executable, "-m", "kmodd", "request", "dm_crypt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    require(done.returncode == 0, done.stderr.strip() or f"kmodd request ended with {done.returncode}")
    told = demo.told(before)
    ciphers = {"crypto-cbc(aes)": "not-found", "crypto-cbc(aes)-all": "not-found", "crypto-cbc": "loaded"}
    require_outcomes(told, {"dm_crypt": "loaded", **ciphers})
    nested = {
        request.name
        for request in told
        for outer in told
        if outer.name == "dm_crypt" and outer.begun <= request.begun < outer.ended
    }
    missing = set(ciphers) - nested
    require(not missing, f"not asked for during the load of dm_crypt: {' '.join(sorted(missing))}")
    require_live(["encrypted_keys", "cbc", "dm_crypt"])
    live = live_modules()
    between = live.index("encrypted_keys") < live.index("cbc") < live.index("dm_crypt")
    require(between, "cbc did not come in between encrypted_keys and dm_crypt")
    return "cbc came in after encrypted_keys and before dm_crypt: in the middle of the load that needed it."


def mount_nothing(demo: Demo) -> str:
    """A file system that nobody has."""
    before = len(demo.follower.requests)
    began = time.monotonic()
    try:
        stick.mount("none", str(WORK), "nosuchfs")
    except OSError as error:
        number = error.errno
    else:
        raise StepFailed("a file system nosuchfs was mounted")
    took = (time.monotonic() - began) * 1000
    name = errno.errorcode.get(number or 0, str(number))
    require(number == errno.ENODEV, f"the mount failed with {name} instead of ENODEV")
    require_outcomes(demo.told(before), {"fs-nosuchfs": "not-found"})
    return f"mount(2) failed with {name} after {took:.0f} ms, as it should."


STEPS = (
    Step(
        "Mount a memory stick",
        "Neither the loop device nor the file system is in the kernel yet. Each is asked for when it is "
        "touched; so are the character sets that vfat needs.",
        mount_stick,
    ),
    Step(
        "Open seven sockets at once",
        "Loads run side by side. Three sockets are X.25 (family 9) and share one load; CAN (29) needs a "
        "second module for its raw protocol; SCTP brings its dependencies.",
        open_sockets,
    ),
    Step(
        "kmodd request dm_crypt: a load that needs other loads",
        "While this load runs, the kernel asks for ciphers (indented). They are served at once; in line "
        "behind dm_crypt they would wait for ever. That two of them do not exist is normal.",
        load_nested,
    ),
    Step(
        "Mount what does not exist",
        "The program is told at once; the record is complete when kmodd knows why.",
        mount_nothing,
    ),
    Step(
        "Kill kmodd in the middle of a load",
        "AppleTalk is made slow to load by an `install` line in modprobe.d. The request must not be lost: "
        "the helper that the kernel waits for turns into the real modprobe.",
        kill_daemon,
    ),
    Step(
        "Start kmodd again",
        "The hook was on all the time, so the next request comes to the new daemon.",
        start_again,
    ),
)
