"""What can go wrong with a lab, each with the exit status that the command gives it."""

from kmodd.errors import KmoddError


class LabError(KmoddError):
    """The lab cannot do what was asked; the text is one sentence: what, reason, way out."""

    exit_status = 1


class LabTimeout(LabError):
    """The guest, or something run in it, took longer than allowed."""

    exit_status = 5


class GuestDied(LabError):
    """The guest ended by itself: a panic, a power-off, a boot that failed."""
