"""What `modprobe` only shows: the configuration, and the checksums of symbols."""

from __future__ import annotations

import errno
import os

from kmodd.cli.classic import say
from kmodd.errors import KmoddError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.cli.classic.say import Messages
    from kmodd.tree.index import Index
    from kmodd.tree.modprobed import Config


def show_symbols(path: str, messages: Messages, what: str) -> bool:
    """Print the checksums of what a file's module needs (`modversions`) or exports (`symbols`)."""
    from kmodd.image import compressed, elf  # noqa: PLC0415 - no other option needs them

    try:
        os.stat(path)
        missing = not os.path.basename(path)
    except (OSError, ValueError):
        missing = True
    if missing:
        messages.fatal(f"Module {path} not found.")
        return False
    try:
        image = compressed.read_module(path)
        found = elf.modversions(image) if what == "modversions" else elf.exports(image)
        if not found:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    except (OSError, KmoddError) as err:
        number = getattr(err, "errno", None)
        messages.fatal(f"could not get {what} of {path}: {os.strerror(number) if number else err}")
        return False
    say.write(b"".join(b"0x%08x\t%s\n" % (crc, os.fsencode(name)) for crc, name in found))
    return True


def show_config(config: Config, tree: Index) -> None:
    """Print the configuration, then the aliases of the modules."""
    lines = [f"blacklist {name}" for name in config.blacklist]
    lines += [f"install {line.pattern} {line.command}" for line in config.install.items]
    lines += [f"remove {line.pattern} {line.command}" for line in config.remove.items]
    lines += [f"alias {line.pattern} {line.module}" for line in config.aliases.items]
    lines += [f"options {line.module} {line.parameters}" for line in config.options]
    for line in config.softdeps.items:
        pre = f"pre: {' '.join(line.pre)}" if line.pre else ""
        post = f"post: {' '.join(line.post)}" if line.post else ""
        lines.append(f"softdep {line.pattern} {pre}{post}")  # no blank between, in kmod 30
    lines += ["", "# End of configuration files. Dumping indexes now:", ""]
    lines += [f"alias {pattern} {module}" for pattern, module in sorted(tree.aliases(), key=lambda x: x[0])]
    lines += [
        f"alias {symbol} {module}" for symbol in sorted(tree.symbols()) for module in tree.symbol(symbol)
    ]
    say.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
