"""`kmodd serve`: the daemon in the foreground."""

from __future__ import annotations

import os
from argparse import Namespace

from kmodd.daemon import Options
from kmodd.daemon import serve as run_daemon
from kmodd.record.systemlog import handler


def serve(arguments: Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    options = Options(hook=arguments.hook, kernel=arguments.kernel, root=os.path.abspath(arguments.root))
    run_daemon(options, handler)
    return 0
