"""Makes sure that a guest and its files do not outlive the lab, however the lab ends.

The janitor is a shell in a session of its own that reads a pipe. Only the lab holds the other end,
so its death, by SIGKILL too, is an end of file there; the janitor then kills the guest's process
group, removes the directory and puts the terminal back.
"""

import contextlib
import os
import subprocess
from pathlib import Path

_SCRIPT = r"""
trap '' HUP INT TERM QUIT TSTP
group=
while read -r word value; do
	case $word in
	guest) group=$value ;;
	gone) group= ;;
	esac
done
# -s: dash takes the -- behind -KILL for a process.
if [ -n "$group" ]; then
	kill -s KILL -- "-$group"
	# User-mode Linux that is killed while it starts may still make its directory: wait until it is dead,
	# but not for zombies whose new parent does not reap.
	tries=0
	while kill -s 0 -- "-$group" && [ "$tries" -lt 100 ]; do
		tries=$((tries + 1))
		sleep 0.02
	done
fi
for wait in 0 0.1 0.3 1; do
	sleep "$wait"
	rm -rf -- "$1" && [ ! -e "$1" ] && break
done
[ -z "$2" ] || stty "$2" <&3
"""

_GATE = 'ulimit -c 0; ulimit -n "$(ulimit -H -n)"; read -r go || exit 1; exec "$@" </dev/null'
"""What starts the guest: waits until the janitor knows its number, gives up if the lab is gone."""


class Janitor:
    """Looks after one directory and at most one guest."""

    def __init__(self, directory: Path, terminal: int | None = None) -> None:
        """Start it; `terminal` is a descriptor whose settings of now are to be restored."""
        reader, self._pipe = os.pipe2(os.O_CLOEXEC)
        saved = "" if terminal is None else _terminal_settings(terminal)
        # A copy, because its number may be that of standard input, which becomes the pipe.
        copy = None if terminal is None else os.dup(terminal)
        setup = "" if copy is None else f"exec 3<&{copy}; "
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", setup + _SCRIPT, "kmodd-lab-janitor", str(directory), saved],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=() if copy is None else (copy,),
            start_new_session=True,
            cwd="/",
        )
        os.close(reader)
        if copy is not None:
            os.close(copy)

    def start(self, argv: list[str], fds: tuple[int, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the guest: output and errors to a pipe, in a process group of its own."""
        guest = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "kmodd-lab-guest", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            env=env,
            start_new_session=True,
            cwd="/",
        )
        assert guest.stdin is not None
        os.write(self._pipe, f"guest {guest.pid}\n".encode())
        with contextlib.suppress(BrokenPipeError):
            guest.stdin.write(b"go\n")
            guest.stdin.close()
        return guest

    def release(self) -> None:
        """The guest is gone: its number may be another's from now on."""
        os.write(self._pipe, b"gone\n")

    def close(self) -> None:
        """Have it clean up and wait until it has."""
        os.close(self._pipe)
        self._process.wait()


def _terminal_settings(terminal: int) -> str:
    done = subprocess.run(["stty", "-g"], stdin=terminal, capture_output=True, text=True, check=False)
    return done.stdout.strip()
