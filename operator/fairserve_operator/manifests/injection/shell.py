"""Reading a shell script just far enough to know that words appended to it are vLLM's arguments.

This is no shell. A script is a list of simple commands, one after the other, of which the last starts vLLM;
everything else (pipes, redirections, branches, subshells, comments behind a command) is not understood, and
what is not understood is not touched.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import dropwhile

_SHELLS = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh"))
_OPTIONS = re.compile(r"-[a-z]+")
_PUNCTUATION = ";&|<>()"
_CONTINUED = re.compile(r"\\\n")
#: Kubernetes' own expansion, or a command's output: one word, or several, that nobody here knows.
_SUBSTITUTED = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
#: Whoever creates Pods writes what is searched: no pattern may look at a character more than a few times.
_SERVES = re.compile(r"\bvllm\s+serve\b")
_DOTTED = re.compile(r"[\w./]+")
_ENTRYPOINTS = re.compile(r"\bvllm[./]entrypoints[./]")
#: Commands that may set any variable, and those that may if a variable names it.
_RUN_OTHERS = frozenset((".", "source", "eval"))
_SETTERS = frozenset(("declare", "export", "local", "read", "readonly", "typeset", "unset"))
#: What may be before a command's name.
_BEFORE_NAME = frozenset(
    ("if", "then", "elif", "else", "while", "until", "do", "{", "!", "time", "command", "builtin")
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")


class UnreadableError(ValueError):
    """A script that is not understood. The message says what is in the way."""


def script_at(argv: Sequence[str]) -> int | None:
    """Where in an argument list the script of `sh -c` is; None if no shell is started."""
    if not argv or argv[0].rpartition("/")[2] not in _SHELLS:
        return None
    for index, word in enumerate(argv[1:], start=1):
        if not word.startswith("-"):
            return None
        if "c" in word and _OPTIONS.fullmatch(word):
            return index + 1 if index + 1 < len(argv) else None
    return None


def mentions_vllm(script: str) -> bool:
    """Whether a script seems to start vLLM somewhere."""
    text = _CONTINUED.sub(" ", script)
    return _SERVES.search(text) is not None or any(map(_is_server, _DOTTED.findall(text)))


def read_commands(script: str) -> list[list[str]]:
    """The words of the script's commands, quotes removed; the last one may start vLLM, and none before.
    Raises UnreadableError.
    """
    if script.rstrip().endswith("\\"):
        raise UnreadableError("it ends within a line")
    commands = _commands(script.rstrip())
    if not commands[-1]:
        raise UnreadableError("it ends without a command")
    if any(mentions_vllm(" ".join(command)) for command in commands[:-1]):
        raise UnreadableError("it starts vLLM and goes on after that")
    return commands


def may_set(commands: Iterable[Sequence[str]], variable: str) -> bool:
    """Whether one of the commands may give the shell's variable another value, or take it away."""
    name = re.escape(variable)
    is_read = re.compile(rf"\$(?:{name}\b|\{{{name}\}})")
    is_named = re.compile(rf"\b{name}\b")
    return any(
        _sets_anything(command) or any(is_named.search(is_read.sub("", word)) for word in command)
        for command in commands
    )


def _commands(script: str) -> list[list[str]]:
    text = _SUBSTITUTED.sub(r"$\1", _CONTINUED.sub(" ", script))
    for sign, what in (("`", "a command's output in backticks"), ("$(", "a command's output $(...)")):
        if sign in text:
            raise UnreadableError(f"it has {what}")
    lines = text.splitlines()
    if lines and _is_comment(lines[-1]):
        raise UnreadableError("it ends in a comment")
    lines = [line for line in lines if not _is_comment(line)]
    lexer = shlex.shlex(" ; ".join(lines), posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word in (";", "&&"):
                commands.append([])
            elif word and not word.strip(_PUNCTUATION):
                raise UnreadableError(f"it has {word!r}")
            elif word.startswith("#"):
                raise UnreadableError("it has a comment behind a command")
            else:
                commands[-1].append(word)
    except ValueError as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"its quotes don't match ({error})") from error
    return commands


def _sets_anything(command: Sequence[str]) -> bool:
    words = dropwhile(lambda word: word in _BEFORE_NAME or _ASSIGNMENT.match(word), command)
    name = next(words, "")
    return name in _RUN_OTHERS or (name in _SETTERS and any(word.startswith("$") for word in words))


def _is_server(module: str) -> bool:
    """Whether a module's name, or a file's, is that of vLLM's server, or has it inside."""
    found = _ENTRYPOINTS.search(module)
    return found is not None and "api_server" in module[found.end() :]


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")
