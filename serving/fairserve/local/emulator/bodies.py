"""Request bodies of the emulator, in vLLM's shape.

Like vLLM it takes fields that it doesn't know. Sampling parameters (temperature, top_p, seed, ...) change
nothing because there is no model to sample from. What would change the *shape* of an answer and is not
emulated is refused by name rather than ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairserve.local.emulator.words import chat_tokens, seed_of, text_tokens


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    n: int = 1
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _is_emulated(self) -> Self:
        if self.n != 1:
            raise ValueError("n: the emulator gives one choice")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when `stream` is true")
        if self.output_cap is not None and self.min_tokens > self.output_cap:
            raise ValueError("min_tokens: must not exceed max_tokens")
        extra = self.model_extra or {}
        for name in self.not_emulated():
            if extra.get(name) not in (None, False):
                raise ValueError(f"{name}: not emulated")
        return self

    @property
    def output_cap(self) -> int | None:
        """The client's own limit of output tokens."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether each chunk of a stream carries the usage so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @staticmethod
    def not_emulated() -> tuple[str, ...]:
        """Fields that would change the answer's shape."""
        return ("logprobs", "use_beam_search", "prompt_logprobs", "structured_outputs", "guided_json")

    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        raise NotImplementedError

    def seed(self) -> int:
        """Reduce the prompt to a number."""
        raise NotImplementedError


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Its text parts; images and the like count as their placeholder."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", f"<{part.get('type')}>")) for part in self.content or ())


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _shape_is_plain(self) -> Self:
        extra = self.model_extra or {}
        shape = extra.get("response_format") or {}
        if isinstance(shape, dict) and shape.get("type", "text") != "text":
            raise ValueError("response_format: only text is emulated")
        if extra.get("tool_choice") not in (None, "none", "auto"):
            raise ValueError("tool_choice: the emulator never calls a tool")
        return self

    @property
    def output_cap(self) -> int | None:
        """The newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def prompt_tokens(self) -> int:
        """Length of the messages under the template."""
        return chat_tokens([message.text() for message in self.messages])

    def seed(self) -> int:
        """Reduce the messages to a number."""
        return seed_of("\n".join(f"{message.role}: {message.text()}" for message in self.messages))


class CompletionBody(Body):
    """POST /v1/completions. A prompt is one text or one list of token ids."""

    prompt: str | list[int] | list[str]

    @model_validator(mode="after")
    def _prompt_is_one(self) -> Self:
        if not self.prompt:
            raise ValueError("prompt: is empty")
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str) and len(self.prompt) > 1:
            raise ValueError("prompt: the emulator takes one prompt per request")
        return self

    @staticmethod
    def not_emulated() -> tuple[str, ...]:
        """Fields that would change the answer's shape."""
        return (*Body.not_emulated(), "echo", "suffix")

    def prompt_tokens(self) -> int:
        """Length of the text, or number of the token ids."""
        if isinstance(self.prompt, str):
            return text_tokens(self.prompt)
        first = self.prompt[0]
        return text_tokens(first) if isinstance(first, str) else len(self.prompt)

    def seed(self) -> int:
        """Reduce the prompt to a number."""
        return seed_of(self.prompt if isinstance(self.prompt, str) else repr(self.prompt))
