"""`modprobe`: put a module with all that it needs into the kernel, or take it out."""

from __future__ import annotations

import os

from kmodd.cli.classic import getopt, say
from kmodd.cli.classic.say import Messages
from kmodd.cli.classic.settings import (
    FIRST_TIME,
    HOLDERS,
    MODVERSION,
    OPTIONS,
    SHOW_EXPORTS,
    SHOW_VERSIONS,
    VERMAGIC,
    Settings,
    milliseconds,
    split,
)
from kmodd.errors import KmoddError

_USAGE = """\
Usage:
\t{prog} [options] [-i] [-b] modulename
\t{prog} [options] -a [-i] [-b] modulename [modulename...]
\t{prog} [options] -r [-i] modulename
\t{prog} [options] -r -a [-i] modulename [modulename...]
\t{prog} [options] -c
\t{prog} [options] --dump-modversions filename
Management Options:
\t-a, --all                   Consider every non-argument to
\t                            be a module name to be inserted
\t                            or removed (-r)
\t-r, --remove                Remove modules instead of inserting
\t    --remove-dependencies   Deprecated: use --remove-holders
\t    --remove-holders        Also remove module holders (use together with -r)
\t-w, --wait <MSEC>           When removing a module, wait up to MSEC for
\t                            module's refcount to become 0 so it can be
\t                            removed (use together with -r)
\t    --first-time            Fail if module already inserted or removed
\t-i, --ignore-install        Ignore install commands
\t-i, --ignore-remove         Ignore remove commands
\t-b, --use-blacklist         Apply blacklist to resolved alias.
\t-f, --force                 Force module insertion or removal.
\t                            implies --force-modversions and
\t                            --force-vermagic
\t    --force-modversion      Ignore module's version
\t    --force-vermagic        Ignore module's version magic

Query Options:
\t-R, --resolve-alias         Only lookup and print alias and exit
\t-D, --show-depends          Only print module dependencies and exit
\t-c, --showconfig            Print out known configuration and exit
\t-c, --show-config           Same as --showconfig
\t    --show-modversions      Dump module symbol version and exit
\t    --dump-modversions      Same as --show-modversions
\t    --show-exports          Only print module exported symbol versions and exit

General Options:
\t-n, --dry-run               Do not execute operations, just print out
\t-n, --show                  Same as --dry-run
\t-C, --config=FILE           Use FILE instead of default search paths
\t-d, --dirname=DIR           Use DIR as filesystem root for /lib/modules
\t-S, --set-version=VERSION   Use VERSION instead of `uname -r`
\t-s, --syslog                print to syslog, not stderr
\t-q, --quiet                 disable messages
\t-v, --verbose               enables more messages
\t-V, --version               show version
\t-h, --help                  show this help
"""
_SHORT = "arw:RibfDcnC:d:S:sqvVhk"
_LONG = {
    "all": "a",
    "remove": "r",
    "remove-dependencies": HOLDERS,
    "remove-holders": HOLDERS,
    "wait": "w",
    "resolve-alias": "R",
    "first-time": FIRST_TIME,
    "ignore-install": "i",
    "ignore-remove": "i",
    "use-blacklist": "b",
    "force": "f",
    "force-modversion": MODVERSION,
    "force-vermagic": VERMAGIC,
    "show-depends": "D",
    "showconfig": "c",
    "show-config": "c",
    "show-modversions": SHOW_VERSIONS,
    "dump-modversions": SHOW_VERSIONS,
    "show-exports": SHOW_EXPORTS,
    "dry-run": "n",
    "show": "n",
    "config": "C",
    "dirname": "d",
    "set-version": "S",
    "syslog": "s",
    "quiet": "q",
    "verbose": "v",
    "version": "V",
    "help": "h",
}


def main(argv: list[str], prog: str) -> int:
    """Run `modprobe ARGV`; return 0, or 1 where it could not be done."""
    words: list[str] = []
    messages = Messages(prog)
    settings = Settings()
    given = split(os.environ.get(OPTIONS, ""))
    for letter, value in getopt.options([*given, *argv], _SHORT, _LONG, prog, words):
        match letter:
            case "h":
                say.write(_USAGE.format(prog=prog).encode())
                return 0
            case "V":
                say.print_version()
                return 0
            case getopt.WRONG:
                return 1
            case "w":
                wait = milliseconds(value)
                if wait is None:
                    messages.error(f"unexpected wait value '{value}'.")
                    return 1
                settings.wait = wait
            case _:
                settings.take(letter, value)
    if "s" in settings.letters or not say.has_error_output():
        messages.use_syslog()
    if not words and "c" not in settings.letters:
        messages.error("missing parameters. See -h.")
        return 1
    messages.level = settings.verbosity
    try:
        return 0 if _run(settings, words, messages) else 1
    except say.Stop:
        return 1
    except KmoddError as err:  # a file of the tree's that is damaged
        messages.error(str(err))
        return 1


def _parameters(words: list[str]) -> str:
    """Return `KEY=VALUE` words as the kernel takes them: values with a blank in quotes."""
    out = []
    for word in words:
        key, _, value = word.partition("=")
        quote = " " in value and value[0] not in "\"'"
        out.append(f'{key}="{value}"' if quote else word)
    return " ".join(out)


def _run(settings: Settings, words: list[str], messages: Messages) -> bool:
    """Do what the options ask for; return whether it could be done."""
    from kmodd.cli.classic import query  # noqa: PLC0415 - `-h` and `-V` need none of all this
    from kmodd.cli.classic.insert import Inserter  # noqa: PLC0415
    from kmodd.cli.classic.remove import Remover  # noqa: PLC0415
    from kmodd.cli.classic.seen import Tree  # noqa: PLC0415
    from kmodd.tree import modprobed, snapshot  # noqa: PLC0415

    letters = settings.letters
    if SHOW_VERSIONS in letters and "c" not in letters:
        return query.show_symbols(words[0], messages, "modversions")
    if SHOW_EXPORTS in letters and "c" not in letters:
        return query.show_symbols(words[0], messages, "symbols")
    release = os.uname().release if settings.release is None else settings.release
    directory = os.path.join(os.getcwd(), f"{settings.root}/lib/modules/{release}")
    tree = Tree(directory)
    config = modprobed.load(
        settings.config or modprobed.DIRECTORIES, tree.directory, snapshot.kernel_command_line()
    )
    if (lines := tree.softdep_lines()) is not None:
        modprobed.parse(config, lines, f"{directory} (.modinfo)")
    for problem in config.problems:
        messages.always(str(problem))
    if "c" in letters:
        query.show_config(config, tree)
        return True
    messages.lenient = "a" in letters
    if "r" in letters:
        remover = Remover(settings, messages, tree, config)
        return all([remover.remove(name) for name in words])  # noqa: C419 - each has its turn
    inserter = Inserter(settings, messages, tree, config, directory)
    if "a" in letters:
        done = all([inserter.insert(name, "") for name in words])  # noqa: C419 - each has its turn
    else:
        done = inserter.insert(words[0], _parameters(words[1:]))
    if "k" in letters and inserter.inserted:
        from kmodd.cli.classic.mark import mark  # noqa: PLC0415 - sockets, for nothing else

        mark(inserter.inserted)
    return done
