"""Reads a command's words where they are plain, without argparse, whose import costs half of Python's start.

The grammar is the parser's own: `add_argument` is called on a `Quick` as on an `ArgumentParser`. What is not
plain (help, a mistake, `--option=value`, an abbreviation) is not read here, and argparse has its say.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import Any

_ONE, _ANY, _MANY = None, "*", "+"


class Words:
    """What the words said: an attribute for each argument, as argparse's Namespace has it."""


class _Argument:
    """One that `add_argument` has told of."""

    def __init__(self, flags: tuple[str, ...], how: dict[str, Any]) -> None:
        self.option = flags[0].startswith("-")
        longest = next((flag for flag in flags if flag.startswith("--")), flags[0])
        self.name = longest.lstrip("-").replace("-", "_") if self.option else flags[0]
        self.switch = how.get("action") == "store_true"
        self.nargs = how.get("nargs")
        self.default = how.get("default", False if self.switch else None)
        self.choices: Sequence[str] | None = how.get("choices")
        self.type: Callable[[str], object] = how.get("type", str)

    def value(self, word: str) -> object:
        """Return what a word stands for; raise what argparse turns into a message."""
        value = self.type(word)
        if self.choices is not None and value not in self.choices:
            raise ValueError(word)
        return value


class Quick:
    """The arguments of one command; `read` them once all are added."""

    def __init__(self) -> None:
        self._options: dict[str, _Argument] = {}
        self._positional: list[_Argument] = []

    def add_argument(self, *flags: str, **how: Any) -> None:
        """Take an argument, as `ArgumentParser.add_argument` does."""
        argument = _Argument(flags, how)
        if argument.option:
            self._options.update(dict.fromkeys(flags, argument))
        else:
            self._positional.append(argument)

    def read(self, command: str, words: Sequence[str]) -> Namespace | None:
        """Return what the words of a command say; None where argparse has to read them."""
        found: Any = Words()
        found.command = command
        for argument in (*self._options.values(), *self._positional):
            setattr(found, argument.name, argument.default)
        try:
            plain = self._take_options(found, words)
            if plain is not None and self._take_rest(found, plain):
                given: Namespace = found
                return given
        except Exception:  # noqa: BLE001, S110 - whatever it is, argparse says it
            pass
        return None

    def _take_options(self, found: Words, words: Sequence[str]) -> list[str] | None:
        """Return the words that belong to no option, if they stand together."""
        plain: list[str] = []
        ended = False
        rest = iter(words)
        for word in rest:
            if not word.startswith("-"):
                if ended:
                    return None
                plain.append(word)
                continue
            ended = bool(plain)
            option = self._options.get(word)
            if option is None:
                return None
            value = True if option.switch else self._value_behind(option, rest)
            setattr(found, option.name, value)
        return plain

    def _value_behind(self, option: _Argument, rest: Any) -> object:
        word: str = next(rest)
        if option.nargs is not None or word.startswith("-"):
            raise ValueError(word)
        return option.value(word)

    def _take_rest(self, found: Words, plain: list[str]) -> bool:
        """Give the words to the positional argument; no command that is read here has two."""
        if not self._positional:
            return not plain
        [argument] = self._positional
        values = [argument.value(word) for word in plain]
        if argument.nargs is _ONE and len(values) == 1:
            setattr(found, argument.name, values[0])
        elif argument.nargs == _ANY or (argument.nargs == _MANY and values):
            setattr(found, argument.name, values)
        else:
            return False
        return True
