"""Text without a model: how many tokens a prompt has, and what the answer says.

Both depend on the request alone, so that the same request always gets the same answer.
"""

from __future__ import annotations

import zlib

#: A token is taken to be this many bytes of UTF-8, the usual rule of thumb for English.
BYTES_PER_TOKEN = 4
#: What a chat template adds to each message (role and separators) and to the prompt as a whole.
MESSAGE_TOKENS = 4
TEMPLATE_TOKENS = 3

_PREFACE_TEXT = "This text comes from fairserve's engine emulator, not from a model. It goes on like this:"
_PREFACE = _PREFACE_TEXT.split()
_WORDS_TEXT = (
    "fair share of one engine among many teams by weight while calls wait in a queue and tokens flow"
)
_WORDS = _WORDS_TEXT.split()

#: Without `ignore_eos` an answer ends by itself after this many tokens, at the most and at the least.
SHORTEST_ANSWER = 16
LONGEST_ANSWER = 256


def text_tokens(text: str) -> int:
    """Tokens of a text."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def chat_tokens(contents: list[str]) -> int:
    """Tokens of a chat prompt with these messages."""
    return TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + text_tokens(text) for text in contents)


def seed_of(text: str) -> int:
    """Reduce a prompt to a number."""
    return zlib.crc32(text.encode())


def natural_tokens(seed: int) -> int:
    """After how many tokens the answer to that prompt ends by itself."""
    return SHORTEST_ANSWER + seed % (LONGEST_ANSWER - SHORTEST_ANSWER + 1)


class Answer:
    """The answer to one prompt, word by word; each word is one token."""

    def __init__(self, seed: int) -> None:
        self._offset = seed % len(_WORDS)

    def text(self, start: int, end: int) -> str:
        """Tokens `start` to `end` (excluded) of the answer."""
        return "".join(self._word(index) for index in range(start, end))

    def tokens_until(self, stops: list[str], limit: int) -> tuple[int, int] | None:
        """Where the first of the stop strings ends, in tokens, and where it begins, in characters.

        None if it does not occur in the first `limit` tokens.
        """
        text = self.text(0, limit)
        found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
        if not found:
            return None
        begins = min(at for at, _ in found)
        ends = min(at + len(stop) for at, stop in found)
        length = 0
        for index in range(limit):
            length += len(self._word(index))
            if length >= ends:
                return index + 1, begins
        raise AssertionError("a stop string lies within the text that holds it")

    def _word(self, index: int) -> str:
        word = _PREFACE[index] if index < len(_PREFACE) else _WORDS[(self._offset + index) % len(_WORDS)]
        return f" {word}" if index else word
