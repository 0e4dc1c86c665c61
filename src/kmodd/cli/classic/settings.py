"""What the options of `modprobe` say."""

from __future__ import annotations

import os

from kmodd.cli.classic.say import WARNING
from kmodd.kernel import modulecalls

HOLDERS, FIRST_TIME, MODVERSION, VERMAGIC, SHOW_VERSIONS, SHOW_EXPORTS = "123456"
"""Letters for the options that have none."""

OPTIONS = "MODPROBE_OPTIONS"
"""Environment: options that come before those of the command line, and are handed on to commands."""


class Settings:
    """What the options say."""

    __slots__ = ("config", "letters", "release", "root", "verbosity", "wait")

    def __init__(self) -> None:
        self.letters: set[str] = set()
        self.config: list[str] = []
        self.root = ""
        self.release: str | None = None
        self.verbosity = WARNING
        self.wait = 0
        """Milliseconds."""

    def take(self, letter: str, value: str) -> None:
        """Take one option; those that commands of modprobe.d must know go into their environment."""
        self.letters.add(letter)
        match letter:
            case "C":
                self.config.append(value)
            case "d":
                self.root = value
            case "S":
                self.release = value
            case "q":
                self.verbosity = 0
            case "v":
                self.verbosity += 1
        if letter in "Cqsv":
            before = os.environ.get(OPTIONS, "")
            os.environ[OPTIONS] = f"{before} -{letter} {value}".strip()

    @property
    def verbose(self) -> bool:
        """Whether to print what is done."""
        return "D" in self.letters or self.verbosity > WARNING

    @property
    def force_flags(self) -> int:
        """The flags of finit_module(2)."""
        flags = 0
        if self.letters & {"f", MODVERSION}:
            flags |= modulecalls.IGNORE_MODVERSIONS
        if self.letters & {"f", VERMAGIC}:
            flags |= modulecalls.IGNORE_VERMAGIC
        return flags


def split(text: str) -> list[str]:
    """Return the words of MODPROBE_OPTIONS: blanks part them, except in quotes that are closed again."""
    words: list[str] = []
    word: str | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char == " ":
            if word is not None:
                words.append(word)
            word = None
        elif char in "\"'" and (end := text.find(char, at + 1)) > 0:
            word = (word or "") + text[at + 1 : end]
            at = end
        else:
            word = (word or "") + char
        at += 1
    return words if word is None else [*words, word]


def milliseconds(text: str) -> int | None:
    """Return a number as strtoul(3) reads it, which turns a negative one into a very large one."""
    text = text.lstrip(" \t\n\v\f\r")
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        return None
    return int(text) if text[0] != "-" else 1 << 62
