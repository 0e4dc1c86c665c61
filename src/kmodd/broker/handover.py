"""What a later daemon has to know of the modules of ours: a file in /run, which lives as long as the boot.

Not the journal: that may be off, full or behind, and a module that somebody has claimed since must never come
back to us. Without the file, or where it is damaged, nothing is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os

from kmodd.broker.ours import Ours, State
from kmodd.broker.threads import in_own_thread
from kmodd.image import whole
from kmodd.policy import files

log = logging.getLogger(__name__)

NAME = "autoclean.json"
_LARGEST = 4 << 20


class Handover:
    """Keeps the file as what is ours changes, in a thread; of several changes the last one counts."""

    def __init__(self, ours: Ours, directory: str) -> None:
        self._ours = ours
        self._path = os.path.join(directory, NAME)
        self._writing: asyncio.Task[None] | None = None
        self._changed = False

    async def take_over(self) -> None:
        """Have what an earlier daemon knew be known; whatever is wrong with it is told, and costs no more."""
        try:
            state = await in_own_thread("kmod_handover", self._read)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as err:
            log.warning("what an earlier daemon has loaded stays: cannot read %s: %s", self._path, err)
            return
        self._ours.take_over(state)

    def change(self) -> None:
        """What is ours has changed."""
        self._changed = True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_on())

    async def written(self, patience: float) -> None:
        """Wait until the file is as it should be, for so many seconds at the most."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=patience)

    async def _write_on(self) -> None:
        try:
            while self._changed:
                self._changed = False
                text = json.dumps(self._ours.state())
                await in_own_thread("kmod_handover", lambda text=text: self._write(text))  # type: ignore[misc]
        except OSError as err:
            log.warning(
                "a later daemon may not know what it may unload: cannot write %s: %s", self._path, err
            )
        finally:
            self._writing = None

    def _write(self, text: str) -> None:
        try:
            files.write(self._path, text, 0o600)
        except OSError:
            # Better none than one that says what is no longer so.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            raise

    def _read(self) -> State:
        state = json.loads(whole.read(self._path, _LARGEST))
        if not isinstance(state, dict):
            raise ValueError("it is not an object")  # noqa: TRY004 - of the file's, not of ours
        for known in state.values():
            if not (
                isinstance(known, dict)
                and isinstance(known.get("identity"), str)
                and isinstance(known.get("marked"), bool)
            ):
                raise ValueError("it does not say which modules are ours")  # noqa: TRY004 - as above
        return state
