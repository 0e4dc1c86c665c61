"""`modinfo`: what a module says of itself, found by its file, its name or an alias."""

from __future__ import annotations

import errno
import os
import stat

from kmodd.cli.classic import getopt, say
from kmodd.errors import KmoddError
from kmodd.image import compressed, elf
from kmodd.image.signature import signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.tree.index import Index

    Found = tuple[str, str | None, list[tuple[str, str]]]
    """A module: its name, its file (None: built in), and what is known of it without a file."""

_USAGE = """\
Usage:
\t{prog} [options] <modulename|filename> [args]
Options:
\t-a, --author                Print only 'author'
\t-d, --description           Print only 'description'
\t-l, --license               Print only 'license'
\t-p, --parameters            Print only 'parm'
\t-n, --filename              Print only 'filename'
\t-0, --null                  Use \\0 instead of \\n
\t-m, --modname               Handle argument as module name instead of alias or filename
\t-F, --field=FIELD           Print only provided FIELD
\t-k, --set-version=VERSION   Use VERSION instead of `uname -r`
\t-b, --basedir=DIR           Use DIR as filesystem root for /lib/modules
\t-V, --version               Show version
\t-h, --help                  Show this help
"""
_SHORT = "adlpn0mF:k:b:Vh"
_LONG = {
    "author": "a",
    "description": "d",
    "license": "l",
    "parameters": "p",
    "filename": "n",
    "null": "0",
    "modname": "m",
    "field": "F",
    "set-version": "k",
    "basedir": "b",
    "version": "V",
    "help": "h",
}
_FIELDS = {"a": "author", "d": "description", "l": "license", "p": "parm", "n": "filename"}
_ENDINGS = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def main(argv: list[str], prog: str) -> int:
    """Run `modinfo ARGV`; return 0, or 1 where one of the modules could not be shown."""
    messages = say.Messages(prog)
    printer = _Printer(messages)
    release, root, only_names = os.uname().release, "", False
    names: list[str] = []
    for letter, value in getopt.options(argv, _SHORT, _LONG, prog, names):
        match letter:
            case "F":
                printer.field = value
            case "0":
                printer.end = b"\0"
            case "m":
                only_names = True
            case "k":
                release = value
            case "b":
                root = value
            case "h":
                say.write(_USAGE.format(prog=prog).encode())
                return 0
            case "V":
                say.print_version()
                return 0
            case getopt.WRONG:
                return 1
            case _:
                printer.field = _FIELDS[letter]
    if not names:
        messages.error("missing module or filename.")
        return 1
    tree = _Tree(os.path.join(os.getcwd(), f"{root}/lib/modules/{release}"))
    done = [_show(name, tree, printer, messages, only_names=only_names) for name in names]
    return 0 if all(done) else 1


def _show(name: str, tree: _Tree, printer: _Printer, messages: say.Messages, *, only_names: bool) -> bool:
    """Show the modules that one argument stands for; return whether all went well."""
    if not only_names and _is_module_file(name):
        found: list[Found] = [(_module_name(name), os.path.join(os.getcwd(), name), [])]
    else:
        try:
            found = tree.find(name, only_names=only_names)
        except KmoddError as err:
            from kmodd.tree.glob import BadBrackets  # noqa: PLC0415

            unpaired = f"Module {'name' if only_names else 'alias'} {name} not found."
            messages.error(unpaired if isinstance(err, BadBrackets) else str(err))
            return False
        if not found:
            messages.error(f"Module {'name ' if only_names else ''}{name} not found.")
            return False
    done = True
    for module in found:
        done = printer.show(*module) and done
    return done


def _is_module_file(name: str) -> bool:
    try:
        return name.endswith(_ENDINGS) and stat.S_ISREG(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".")[0].replace("-", "_")


class _Printer:
    """Prints modules, or only one field of them."""

    __slots__ = ("_messages", "end", "field")

    def __init__(self, messages: say.Messages) -> None:
        self._messages = messages
        self.field: str | None = None
        self.end = b"\n"

    def show(self, name: str, path: str | None, known: list[tuple[str, str]]) -> bool:
        """Print a module; return whether it could be read."""
        if self.field == "filename":
            say.write((os.fsencode(path) if path else b"(builtin)") + self.end)
            return True
        out: list[bytes] = []
        if self.field is None:
            if path is None:
                out.append(b"name:           " + _bytes(name))
            out.append(b"filename:       " + (os.fsencode(path) if path else b"(builtin)"))
        elif path is None and self.field == "name":
            out.append(_bytes(name))
        problem = None
        try:
            self._fields(_read(path) if path else known, out)
        except OSError as err:
            problem = err.strerror
        except KmoddError as err:
            problem = _reason(err)
        say.write(b"".join(line + self.end for line in out))
        if problem:
            self._messages.error(f"could not get modinfo from '{name}': {problem}")
        return not problem

    def _fields(self, entries: list[tuple[str, str]], out: list[bytes]) -> None:
        parameters: dict[str, list[str | None]] = {}
        for key, value in entries:
            if key in ("parm", "parmtype") and self.field in (None, "parm"):
                name, colon, rest = value.partition(":")
                if not colon:
                    self._messages.error(f"""Found invalid "{key}={value}": missing ':'""")
                    continue
                parameters.setdefault(name, [None, None])[key == "parmtype"] = rest
            elif self.field is None:
                # Padded only where people read it; kmod does not with -0.
                out.append(_bytes(f"{key}={value}") if self.end == b"\0" else _padded(key) + _bytes(value))
            elif self.field == key:
                out.append(_bytes(value))
        # The last that comes up is the first that is printed, as in kmod.
        for name, (text, kind) in reversed(parameters.items()):
            out.append(_bytes(self._parameter(name, text, kind)))

    def _parameter(self, name: str, text: str | None, kind: str | None) -> str:
        if self.field is None:
            line = f"parm:           {name}:"
            return line + (kind or "" if text is None else text if kind is None else f"{text} ({kind})")
        return f"{name}:{text or ''}" + ("" if kind is None else f" ({kind})")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _padded(key: str) -> bytes:
    """Return a key with its colon and blanks; one too long has as many as it is too long, as in kmod."""
    raw = _bytes(key)
    return raw + b":" + b" " * abs(15 - len(raw))


def _read(path: str) -> list[tuple[str, str]]:
    image = compressed.read_module(path)
    entries = elf.modinfo(image)
    signed = signature(image)
    return entries + (signed.fields() if signed else [])


def _reason(err: KmoddError) -> str:
    """Return kmod's words for a damaged file, our own for what kmod does not know."""
    number = getattr(err, "errno", None)
    return os.strerror(number) if number in (errno.EINVAL, errno.ENOEXEC, errno.ENOENT) else str(err)


class _Tree:
    """The modules of one kernel; its index is read when a name is first looked up."""

    __slots__ = ("_directory", "_index")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._index: Index | None = None

    def find(self, name: str, *, only_names: bool) -> list[Found]:
        """Return the modules that a name stands for; with `only_names` those it does not as an alias.

        The configuration has no part in it. An alias of a built-in module counts as a name, as in kmod.

        Raises:
            KmoddError: the name's brackets do not pair, or the tree's files are damaged.
        """
        # Imported here: with files as arguments there is no need for any of it.
        from kmodd.tree.glob import normalise  # noqa: PLC0415
        from kmodd.tree.index import Index, NoTree  # noqa: PLC0415

        try:
            index = self._index = self._index or Index(self._directory)
        except NoTree:
            return []
        if only_names:
            plain = normalise(name.partition(".")[0])
            known = plain in index or index.is_builtin(plain)
            modules = [plain] if known else index.builtin_alias(plain)
        else:
            from kmodd.tree.lookup import lookup  # noqa: PLC0415
            from kmodd.tree.modprobed import Config  # noqa: PLC0415

            modules = [match.module for match in lookup(index, Config(), name)]
        return [(module, index.path(module), index.builtin_info(module)) for module in modules]
