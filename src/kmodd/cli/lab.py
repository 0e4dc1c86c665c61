"""`kmodd lab`: a disposable real kernel."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from kmodd.lab import LabOptions, run


def lab(arguments: Namespace) -> int:
    """Boot it, run the command in it, end with the command's status."""
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    return run(
        LabOptions(
            kernel=arguments.kernel,
            smp=arguments.smp,
            memory=arguments.memory,
            timeout=arguments.timeout or None,
            serve=not arguments.no_serve,
            release=arguments.release,
            argv=tuple(argv),
            env={"PATH": _path()},
        )
    )


def _path() -> str:
    """Return PATH with the folder of this kmodd first: in the guest it is the same, also from a venv."""
    return f"{os.path.dirname(os.path.abspath(sys.argv[0]))}:{os.environ.get('PATH', os.defpath)}"
