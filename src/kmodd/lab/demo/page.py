"""What the demo looks like: headings, prose, one line for each request, a summary."""

import shutil
import sys
import textwrap
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from kmodd.lab.demo.follower import Request
from kmodd.views import show

_BOLD, _FAINT, _GREEN, _RED, _CYAN = "1", "2", "32", "31", "36"
_TIME, _SOURCE, _NAME, _OUTCOME, _MS = 6, 6, 25, 9, 6
_GAP = "  "
_FIXED = _TIME + _SOURCE + _NAME + _OUTCOME + _MS + 5 * len(_GAP)
_NARROWEST, _WIDEST = 80, 100


class Page:
    """Standard output, 80 to 100 columns wide; any thread may write to it."""

    def __init__(self) -> None:
        columns = shutil.get_terminal_size((_WIDEST, 24)).columns
        self._width = min(max(columns, _NARROWEST), _WIDEST)
        self._start = datetime.now(UTC)
        self._lock = threading.Lock()
        self._columns_shown = False

    def title(self, text: str, *paragraphs: str) -> None:
        """Begin the whole."""
        self._write(show.colour(text, _BOLD), *(self._wrapped(text) for text in paragraphs))

    def step(self, number: int, text: str, watch: str) -> None:
        """Begin a step: what is done, and what to watch for."""
        self._columns_shown = False
        self._write("", show.colour(f"{number}. {text}", f"{_BOLD};{_CYAN}"), self._wrapped(watch))

    def request(self, request: Request, *, nested: bool) -> None:
        """Show a request; the first one of a step below the names of the columns."""
        if not self._columns_shown:
            self._columns_shown = True
            self._write(show.colour(self._columns(), _FAINT))
        name = f"  {request.name}" if nested else request.name
        # A long outcome takes its place from the modules.
        room = self._width - _FIXED - max(0, len(request.outcome) - _OUTCOME)
        modules = fitted(request.modules, room, "shared: " if request.shared else "")
        cells = [
            f"{(request.begun - self._start).total_seconds():{_TIME}.3f}",
            request.source.ljust(_SOURCE),
            name.ljust(_NAME),
            show.outcome(request.outcome, _OUTCOME),
            modules,
            f"{request.took.total_seconds() * 1000:{_MS}.1f}",
        ]
        self._write(_GAP.join(cells))

    def note(self, text: str) -> None:
        """Tell of something that happens beside the requests."""
        self._write(self._wrapped(text, "--  "))

    def passed(self, text: str) -> None:
        """Tell what a step has shown."""
        self._write(self._wrapped(text, "ok  ").replace("ok", show.colour("ok", _GREEN), 1))

    def failed(self, text: str) -> None:
        """Tell that a step has not shown it."""
        self._write(self._wrapped(text, "FAILED  ").replace("FAILED", show.colour("FAILED", _RED), 1))

    def summary(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show a table of what there was."""
        label = max(len(name) for name, _ in rows) + len(_GAP)
        lines = [self._wrapped(text, name.ljust(label)) for name, text in rows]
        self._write("", show.colour("Summary", _BOLD), *lines)

    def _columns(self) -> str:
        words = ["s".rjust(_TIME), "from".ljust(_SOURCE), "asked for".ljust(_NAME), "outcome".ljust(_OUTCOME)]
        words += ["modules"[: self._width - _FIXED].ljust(self._width - _FIXED), "ms".rjust(_MS)]
        return _GAP.join(words)

    def _wrapped(self, text: str, first: str = "") -> str:
        return textwrap.fill(
            text,
            self._width,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_on_hyphens=False,
            break_long_words=False,
        )

    def _write(self, *lines: str) -> None:
        with self._lock:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()


def fitted(modules: Sequence[str], width: int, prefix: str = "") -> str:
    """Modules in one cell of `width`: the last ones, with `+N` for those before them that do not fit."""
    for left_out in range(len(modules)):
        more = f"+{left_out} " if left_out else ""
        text = prefix + more + " ".join(modules[left_out:])
        if len(text) <= width:
            return text.ljust(width)
    if prefix:
        return fitted(modules, width)
    return (modules[-1][: width - 1] + "~" if modules else "-").ljust(width)
