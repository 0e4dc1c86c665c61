"""`kmodd completion`: scripts for bash, zsh and fish, generated from the parser, so that none can differ."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kmodd.cli import parser

_KINDS = {
    ("serve", "root"): "directory",
    ("request", "name"): "installed",
    ("remove", "name"): "live",
    ("resolve", "name"): "installed",
    ("why", "module"): "live",
    ("resolve", "tree"): "directory",
    ("tune", "setting"): "setting",
    ("log", "module"): "installed",
    ("log", "outcome"): "outcome",
    ("lab", "argv"): "command",
}
"""What a value is, where the parser's `choices` do not say it: command and destination."""

_LIVE = "cut -d ' ' -f 1 /proc/modules 2>/dev/null"
# A module's file is `kernel/net/9p/9pnet-virtio.ko.xz`, its name `9pnet_virtio`.
_INSTALLED = r"sed -n 's/:.*//; s/.*\///; s/\.ko.*//p' {} 2>/dev/null | tr - _"
_INDEX = '"/lib/modules/$(uname -r)/modules.dep"'


@dataclass(frozen=True, slots=True)
class _Value:
    """What may stand in one place: some words, or a kind that the shell finds candidates for."""

    label: str
    words: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Option:
    """`value` is None for a switch."""

    flags: tuple[str, ...]
    help: str
    value: _Value | None


@dataclass(frozen=True, slots=True)
class _Command:
    """`many`: its positional arguments may go on."""

    name: str
    help: str
    options: tuple[_Option, ...]
    positional: _Value | None
    many: bool


def completion(arguments: Namespace) -> int:
    """Print the completion script of a shell."""
    print(script(arguments.shell), end="")
    return 0


def script(shell: str) -> str:
    """Return the completion script of `bash`, `zsh` or `fish`."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    general, commands = _read(parser.build())
    return "\n".join(write(general, commands)) + "\n"


# What the parser takes


def _read(whole: argparse.ArgumentParser) -> tuple[tuple[_Option, ...], list[_Command]]:
    subparsers = next(a for a in _actions(whole) if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - no other way
    summaries = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}  # noqa: SLF001 - as above
    commands = [_command(name, summaries[name], made) for name, made in subparsers.choices.items()]
    return _options("", whole), [*commands, *_tools()]


def _tools() -> Iterator[_Command]:
    """Yield the classic tools: their options are kmod's, whose own completion knows them."""
    for name, summary in parser.TOOLS.items():
        kind = "live" if name == "rmmod" else "installed"
        label = "FILE" if name == "insmod" else "NAME"
        value = None if name == "lsmod" else _Value(label, (), "file" if name == "insmod" else kind)
        yield _Command(name, summary, (), value, many=value is not None)


def _actions(of: argparse.ArgumentParser) -> list[argparse.Action]:
    return of._actions  # noqa: SLF001 - argparse has no public way to read a parser


def _options(command: str, made: argparse.ArgumentParser) -> tuple[_Option, ...]:
    return tuple(
        _Option(
            tuple(action.option_strings),
            action.help or "",
            None if action.nargs == 0 else _value(command, action),
        )
        for action in _actions(made)
        if action.option_strings
    )


def _command(name: str, summary: str, made: argparse.ArgumentParser) -> _Command:
    positional = next((action for action in _actions(made) if not action.option_strings), None)
    if positional is None:
        return _Command(name, summary, _options(name, made), None, many=False)
    return _Command(
        name, summary, _options(name, made), _value(name, positional), many=positional.nargs is not None
    )


def _value(command: str, action: argparse.Action) -> _Value:
    label = action.metavar if isinstance(action.metavar, str) else action.dest
    words = tuple(str(choice) for choice in action.choices or ())
    kind = _KINDS.get((command, action.dest), "")
    if kind == "setting":
        from kmodd.settings import SETTINGS  # noqa: PLC0415 - only the completion of tune needs it

        words, kind = tuple(SETTINGS), "setting"
    elif kind == "outcome":
        from kmodd.model import Outcome  # noqa: PLC0415 - only the completion of log needs it

        words, kind = tuple(outcome.value for outcome in Outcome), ""
    return _Value(label, words, kind)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _flags(options: Iterable[_Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


# bash


def _bash(general: tuple[_Option, ...], commands: list[_Command]) -> Iterator[str]:
    yield "# bash completion for kmodd, made by `kmodd completion bash`"
    yield """\
_kmodd_words() {
    local word
    while read -r word; do
        [[ $word != "$cur"* ]] || COMPREPLY+=("$word")
    done < <(printf '%s\\n' "$@")
}"""
    yield f'_kmodd_live() {{ _kmodd_words "$({_LIVE})"; }}'
    yield f'_kmodd_installed() {{ _kmodd_words "$({_INSTALLED.format(_INDEX)})"; }}'
    yield """\
_kmodd_directory() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); }
_kmodd_file() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); }
_kmodd_setting() { compopt -o nospace; _kmodd_words "$@"; }
_kmodd_command() {
    compopt -o filenames
    if ((first == COMP_CWORD)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}
_kmodd() {
    local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command='' valued='' word i first=0 count=0
    local -a options=()
    COMPREPLY=()
    # `--option=value` and `key=value` come as three words
    if [[ $cur == = ]]; then
        cur=''
        [[ $before == -* ]] || return
    elif [[ $before == = ]] && ((COMP_CWORD > 1)); then
        before=${COMP_WORDS[COMP_CWORD - 2]}
        [[ $before == -* ]] || return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]}; break; }
    done
    case $command in"""
    names = " ".join(command.name for command in commands)
    yield f"    '') _kmodd_words {_flags(general)} {names}; return ;;"
    for command in commands:
        taking = [option for option in command.options if option.value]
        yield f"    {command.name}) options=({_flags(command.options)}) valued=' {_flags(taking)} ' ;;"
    yield """\
    *) return ;;
    esac
    # the arguments of the command that stand before this word
    for ((i++; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == -- ]]; then
            first=$((i + 1))
            break
        elif [[ $valued == *" $word "* ]]; then
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            ((i++))
        elif [[ $word != -* ]]; then
            ((count++ || (first = i)))
        fi
    done
    ((first)) || first=$COMP_CWORD
    case $command,$before in"""
    for command in commands:
        for option in command.options:
            if option.value:
                patterns = " | ".join(f"{command.name},{flag}" for flag in option.flags)
                yield f"    {patterns}) {_bash_value(option.value)} return ;;"
    yield "    esac"
    others = "|".join(it.name for it in commands if it.positional and it.positional.kind == "command")
    yield f"    if [[ $cur == -* ]] && ! [[ $command == @({others}) && $first -lt $COMP_CWORD ]]; then"
    yield '        _kmodd_words "${options[@]}"'
    yield "        return"
    yield "    fi"
    yield "    case $command in"
    for command in commands:
        if command.positional:
            once = "" if command.many else "((count)) || "
            yield f"    {command.name}) {once}{_bash_value(command.positional).rstrip(';')} ;;"
    yield "    esac"
    yield "}"
    yield "complete -F _kmodd kmodd"


def _bash_value(value: _Value) -> str:
    words = "".join(f" {word}" for word in value.words)
    if value.kind:
        return f"_kmodd_{value.kind}{words};"
    return f"_kmodd_words{words};" if words else ""


# zsh


def _zsh(general: tuple[_Option, ...], commands: list[_Command]) -> Iterator[str]:
    yield "#compdef kmodd"
    yield "# zsh completion for kmodd, made by `kmodd completion zsh`"
    yield ""
    # _arguments puts options for compadd before what the functions are given
    yield f'_kmodd_live() {{ compadd "$@" -- ${{(f)"$({_LIVE})"}} }}'
    yield f'_kmodd_installed() {{ compadd "$@" -- ${{(f)"$({_INSTALLED.format(_INDEX)})"}} }}'
    yield "_kmodd_setting() { compadd -S '' \"$@\" }"
    yield ""
    yield "_kmodd() {"
    yield "    local context state state_descr line curcontext=$curcontext"
    yield "    local -A opt_args"
    # not `commands`: that is zsh's own table of all commands, which is looked in for `lab`
    yield "    local -a subcommands=("
    for command in commands:
        yield f"        {_quoted(command.name + ':' + command.help)}"
    yield "    )"
    yield "    _arguments -C -S \\"
    for option in general:
        yield f"        {_zsh_option(option)} \\"
    yield "        '1: :->command' '*:: :->arguments'"
    yield "    case $state in"
    yield "    command) _describe -t commands 'kmodd command' subcommands ;;"
    yield "    arguments)"
    yield "        curcontext=${curcontext%:*:*}:kmodd-$words[1]:"
    yield "        case $words[1] in"
    for command in commands:
        yield f"        {command.name})"
        yield (
            " \\\n                ".join(["            " + _zsh_call(command), *_zsh_specs(command)]) + " ;;"
        )
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    yield ""
    yield "# autoloaded by compinit, or sourced"
    yield 'if [[ $funcstack[1] == _kmodd ]]; then _kmodd "$@"; else compdef _kmodd kmodd; fi'


def _zsh_option(option: _Option) -> str:
    text = option.help.translate({ord(char): f"\\{char}" for char in "[]:\\"})
    takes = ""
    if option.value:
        takes = f":{option.value.label}:{_zsh_action(option.value)}"
    both = "'(" + " ".join(option.flags) + ")'" if len(option.flags) > 1 else ""
    # `--option=value` and `--option value`, `-nVALUE` and `-n VALUE`
    spelled = [
        flag + ("" if not option.value else "=" if flag.startswith("--") else "+") for flag in option.flags
    ]
    names = "{" + ",".join(spelled) + "}" if len(spelled) > 1 else spelled[0]
    return f"{both}{names}{_quoted(f'[{text}]{takes}')}"


def _zsh_call(command: _Command) -> str:
    # The arguments of somebody else's command are not ours to complete.
    return (
        "_arguments -S -A '-*'"
        if command.positional and command.positional.kind == "command"
        else "_arguments -S"
    )


def _zsh_specs(command: _Command) -> Iterator[str]:
    yield from map(_zsh_option, command.options)
    value = command.positional
    if value is None:
        return
    if value.kind == "command":
        yield "'*::command:_normal'"
    else:
        yield _quoted(f"{'*' if command.many else '1'}:{value.label}:{_zsh_action(value)}")


def _zsh_action(value: _Value) -> str:
    if value.kind == "directory":
        return "_files -/"
    if value.kind == "file":
        return "_files"
    if value.kind:
        return " ".join([f"_kmodd_{value.kind}", *value.words])
    return f"({' '.join(value.words)})" if value.words else " "


# fish


def _fish(general: tuple[_Option, ...], commands: list[_Command]) -> Iterator[str]:
    yield "# fish completion for kmodd, made by `kmodd completion fish`"
    yield "function __kmodd_command -d 'Whether this is the command; with no argument: whether there is none'"
    yield "    for word in (commandline -opc)[2..]"
    yield "        string match -q -- '-*' $word; and continue"
    yield '        test "$word" = "$argv[1]"'
    yield "        return"
    yield "    end"
    yield "    test (count $argv) -eq 0"
    yield "end"
    yield "function __kmodd_live"
    yield f"    {_LIVE}"
    yield "end"
    yield "function __kmodd_installed"
    yield f"    {_INSTALLED.format('/lib/modules/(uname -r)/modules.dep')}"
    yield "end"
    yield """\
function __kmodd_other -d 'Complete the command line behind ours; the arguments are our options with a value'
    set -l words (commandline -opc)[3..]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        set -l word $words[1]
        set -e words[1]
        test "$word" = --; and break
        contains -- $word $argv; and set -e words[1]
    end
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end
complete -c kmodd -f"""
    for option in general:
        yield _fish_option("__kmodd_command", option)
    for command in commands:
        condition = f"__kmodd_command {command.name}"
        yield f"complete -c kmodd -n __kmodd_command -a {command.name} -d {_quoted(command.help)}"
        for option in command.options:
            yield _fish_option(f"'{condition}'", option)
        if command.positional:
            words, label = _fish_words(command.positional), _quoted(command.positional.label)
            if command.positional.kind == "command":
                words = f"'(__kmodd_other {_flags(option for option in command.options if option.value)})'"
            once = ""
            if not command.many:
                once = f"; and not __fish_seen_subcommand_from {' '.join(command.positional.words)}"
            yield f"complete -c kmodd -n '{condition}{once}' -a {words} -d {label}"


def _fish_option(condition: str, option: _Option) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    takes = ""
    if option.value:
        words = _fish_words(option.value)
        takes = f" -x -a {words}" if words != "''" else " -x"
    return f"complete -c kmodd -n {condition} {flags}{takes} -d {_quoted(option.help)}"


def _fish_words(value: _Value) -> str:
    if value.kind in {"live", "installed"}:
        return f"'(__kmodd_{value.kind})'"
    if value.kind == "directory":
        return "'(__fish_complete_directories)'"
    if value.kind == "file":
        return "'(__fish_complete_path)'"
    return _quoted(" ".join(value.words))
