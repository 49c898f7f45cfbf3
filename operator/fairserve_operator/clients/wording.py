"""Other people's words, made fit for conditions and logs."""

from __future__ import annotations

#: Characters of what somebody else says.
MAX_WORDS = 300


def one_line(words: str) -> str:
    """Fit for a condition: one line, not too long, nothing that a terminal obeys or that JSON can't hold."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words[: 4 * MAX_WORDS]).split())
    return line if len(line) <= MAX_WORDS else line[: MAX_WORDS - 3] + "..."
