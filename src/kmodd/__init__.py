"""kmodd: the on-demand kernel-module loader for Linux as a user-space daemon."""

__version__ = "0.1.0"
