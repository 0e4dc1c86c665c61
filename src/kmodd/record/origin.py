"""Where a module comes from: which events of the journal tell it; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def origin(
    events: Iterable[dict[str, Any]], module: str, denied: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return the events that tell how a module came in, of those that name it, oldest first.

    `load`: the last load that brought it in; `request`: the request which that load was made for;
    `unload`: what took it out again after that; `denied`: the last request for it since that load, of those
    that were denied, `denials` how many there are. Each event is None where there is none.
    """
    load: dict[str, Any] | None = None
    unload: dict[str, Any] | None = None
    requests: dict[int, dict[str, Any]] = {}
    for event in events:
        match event["event"]:
            case "load" if module in (event.get("modules") or ()):
                load, unload = event, None
            case "request":
                requests[event["id"]] = event
            case "unload" if event.get("module") == module:
                unload = event
    # Its own request may have been denied while it went on.
    requests.update((event["id"], event) for event in denied)
    request = None if load is None else requests.get(load["request"])
    since = [event for event in denied if load is None or event["id"] > load["id"]]
    return {
        "load": load,
        "request": request,
        "unload": unload,
        "denied": since[-1] if since else None,
        "denials": len(since),
    }
