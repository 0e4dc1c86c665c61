"""A varlink service that gives back the name it was called with: `python -m bench.echo SOCKET`.

The least that an API of asyncvarlink's can cost: the limit of what kmodd's does.
No `from __future__ import annotations` here: asyncvarlink reads the annotations as types.
"""

import asyncio
import sys

from asyncvarlink import (
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    create_unix_server,
    varlinkmethod,
)

METHOD = "io.kmodd.bench.Echo"


class EchoInterface(VarlinkInterface, name="io.kmodd.bench"):
    """One method."""

    @varlinkmethod(return_parameter="name")
    async def Echo(self, *, name: str) -> str:  # noqa: N802 - varlink's spelling
        """Return the name."""
        return name


async def _serve(path: str) -> None:
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(EchoInterface())
    server = await create_unix_server(lambda: VarlinkInterfaceServerProtocol(registry), path)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
