"""Runs the command line as `python -m kmodd`."""

import sys

from kmodd.cli import main

if __name__ == "__main__":
    sys.exit(main())
