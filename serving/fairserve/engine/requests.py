"""What a request to the engine asks for, and how its body is changed on the way.

A body is read once, as vLLM reads it: Python's `json`, where the last of two equal keys wins, with
pydantic's lenient booleans and integers. A body that can't be read is no error here: the engine gets it
unchanged and answers for itself. Each function named `*_amount` knows one kind of body; `endpoints` says
which path takes which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

_TRUE: Final = frozenset({"true", "1", "on", "yes", "t", "y"})
#: Top-level fields by which a client would place itself before others, or beside their cached prefixes.
_ORDER_FIELDS: Final = frozenset({"priority", "cache_salt"})
#: A whole number as pydantic takes it from a string.
_WHOLE: Final = re.compile(r"([+-]?[0-9](?:_?[0-9])*)(?:\.0+)?")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()
#: What is under `json.loads`: reads the value that begins at an index, and says where it ends.
_SCAN: Final[Callable[[str, int], tuple[Any, int]]] = _DECODER.scan_once  # type: ignore[attr-defined]

#: A body of more values is not read: it would hold up all other calls for most of a second. Lists and
#: objects count as four, as they cost. No prompt that an engine takes comes near.
MOST_VALUES: Final = 4_000_000

Fields = dict[str, Any]
#: Names from the top of a body down to a text.
BodyField = tuple[str, ...]
#: From a body's fields: how many answers are asked for, and the most output tokens of each (None: no cap).
Amount = Callable[[Fields], tuple[int, int | None]]


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_NOTHING_SAID: Final[Mapping[BodyField, str]] = MappingProxyType({})
#: Anthropic's field for the user, which may have a session in it.
_USER_ID: Final[BodyField] = ("metadata", "user_id")
_NAMING_FIELDS: Final = frozenset(
    {
        "conversation",
        "metadata",
        "previous_response_id",
        "safety_identifier",
        "session_id",
        "user",
        "vllm_xargs",
    }
)
#: How Claude Code writes its session into Anthropic's one field: behind the user's name, or as JSON.
_SESSION: Final = re.compile(r"(?P<user>.*)_session_(?P<session>[0-9A-Za-z-]+)", re.DOTALL)


@dataclass(init=False)
class EngineRequest:
    """What matters to the scheduler in a body.

    `sequences` is how many answers are asked for, prompts times answers to each. `max_output_tokens` is the
    client's cap for all of them together, None without one. `payload` is the body for the engine: the
    client's own bytes, without what an untrusted client may not say, and with the usage request added when
    `strips_usage` is set. The names are empty where the body has none.
    """

    payload: bytes
    stream: bool
    strips_usage: bool
    sequences: int
    max_output_tokens: int | None
    user: str
    #: What may name the interaction, by the field that says it: the names are the config's, without `body:`.
    interaction: Mapping[str, str]
    background: bool  #: the answer would come before the work
    readable: bool  #: the body is a JSON object, so that a field can be added to it
    too_deep: bool  #: nested more deeply than can be read here; another Python may read it
    too_much: bool  #: so many values that reading them would hold up everybody
    said: Mapping[BodyField, str]  #: of the fields that were asked for those that hold a text

    def __init__(
        self,
        payload: bytes,
        stream: bool = False,
        strips_usage: bool = False,
        sequences: int = 1,
        max_output_tokens: int | None = None,
        user: str = "",
        interaction: Mapping[str, str] = _NOTHING,
        background: bool = False,
        readable: bool = False,
        too_deep: bool = False,
        too_much: bool = False,
        said: Mapping[BodyField, str] = _NOTHING_SAID,
    ) -> None:
        self.payload = payload
        self.stream = stream
        self.strips_usage = strips_usage
        self.sequences = sequences
        self.max_output_tokens = max_output_tokens
        self.user = user
        self.interaction = interaction
        self.background = background
        self.readable = readable
        self.too_deep = too_deep
        self.too_much = too_much
        self.said = said


def read_json(
    body: bytes,
    amount: Amount,
    *,
    trusted: bool,
    cache_salt: str | None = None,
    wanted: tuple[BodyField, ...] = (),
    usage_on_request: bool = False,
    runs_behind: bool = False,
) -> EngineRequest:
    """Read a JSON body. `trusted`: the client may say where it stands in the engine's queue, and its own
    cache salt. `cache_salt`: the salt of a body that has none. `wanted`: fields to tell in `said`.
    `usage_on_request`: a stream carries usage only if `stream_options` asks for it. `runs_behind`: the
    endpoint knows `background`.
    """
    if 4 * len(body) > MOST_VALUES and _values(body) > MOST_VALUES:
        return EngineRequest(body, too_much=True)
    try:
        fields = _loads(body)
    except ValueError:
        return EngineRequest(body)
    except RecursionError:
        return EngineRequest(body, too_deep=True)
    if type(fields) is not dict:
        return EngineRequest(body)
    if not trusted and not _ORDER_FIELDS.isdisjoint(fields):
        try:
            body = without_fields(body, _ORDER_FIELDS)
        except RecursionError:
            return EngineRequest(body, too_deep=True)
        fields = {name: value for name, value in fields.items() if name not in _ORDER_FIELDS}
    if cache_salt is not None and fields.get("cache_salt") is None:
        added = {"cache_salt": cache_salt}
        body, fields = _with_fields(body, added), {**fields, **added}
    stream = boolean(fields.get("stream"))
    options = fields.get("stream_options")
    asked = type(options) is dict and boolean(options.get("include_usage"))
    strips = usage_on_request and stream and not asked and (options is None or type(options) is dict)
    sequences, cap = amount(fields)
    user, names = _names(fields)
    return EngineRequest(
        payload=_asking_for_usage(body, options) if strips else body,
        stream=stream,
        strips_usage=strips,
        sequences=sequences,
        max_output_tokens=None if cap is None else cap * sequences,
        user=user,
        interaction=names,
        background=runs_behind and boolean(fields.get("background")),
        readable=True,
        said=_said(fields, wanted) if wanted else _NOTHING_SAID,
    )


def chat_amount(fields: Fields) -> tuple[int, int | None]:
    """A chat: `n` answers."""
    cap = integer(fields.get("max_completion_tokens"))
    if cap is None:
        cap = integer(fields.get("max_tokens"))
    return integer(fields.get("n")) or 1, cap


def completion_amount(fields: Fields) -> tuple[int, int | None]:
    """A text completion: `n` answers to each prompt."""
    answers, cap = chat_amount(fields)
    prompts = _prompts(fields.get("prompt")) + _prompts(fields.get("prompt_embeds"))
    return answers * (prompts or 1), cap


def either_amount(fields: Fields) -> tuple[int, int | None]:
    """A chat or a text completion, told by its field."""
    return chat_amount(fields) if "messages" in fields else completion_amount(fields)


def chat_batch_amount(fields: Fields) -> tuple[int, int | None]:
    """Several conversations in one body, `messages` a list of lists."""
    answers, cap = chat_amount(fields)
    return answers * _length(fields.get("messages")), cap


def response_amount(fields: Fields) -> tuple[int, int | None]:
    """OpenAI's Responses: one answer."""
    return 1, integer(fields.get("max_output_tokens"))


def message_amount(fields: Fields) -> tuple[int, int | None]:
    """Anthropic's Messages and Cohere's chat: one answer."""
    return 1, integer(fields.get("max_tokens"))


def tokens_amount(fields: Fields) -> tuple[int, int | None]:
    """Token ids in, token ids out: vLLM's own sampling parameters."""
    parameters = fields.get("sampling_params")
    return chat_amount(parameters) if type(parameters) is dict else (1, None)


def pooling_amount(fields: Fields) -> tuple[int, int | None]:
    """Embeddings, scores and classes: prompts alone, however many."""
    return 1, 0


def scoring_amount(fields: Fields) -> tuple[int, int | None]:
    """Generative scoring: one token for each item."""
    return _length(fields.get("items")), 1


def decision_amount(fields: Fields) -> tuple[int, int | None]:
    """Structured decisions: two tokens for each question at most."""
    return _length(fields.get("questions")), 2


def without_fields(body: bytes, names: Collection[str]) -> bytes:
    """`body`, a JSON object, without the top-level fields of these names. All other bytes stay, but for their
    encoding, which becomes UTF-8. Raises RecursionError for one that could hardly be read.
    """
    text = _utf8(body).decode("utf-8", "surrogatepass")
    members = list(_members(text))
    kept = ",".join(text[start:end] for name, start, end in members if name not in names)
    return (text[: members[0][1]] + kept + text[members[-1][2] :]).encode("utf-8", "surrogatepass")


def with_priority(body: bytes, priority: int) -> bytes:
    """`body`, a JSON object, with its place in the engine's queue, smaller first: see `_with_fields`."""
    return _with_fields(body, {"priority": priority})


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Name of each member of the JSON object in `text`, where it begins and ends with its space."""
    at = _after_space(text, 0) + 1
    while text[at - 1] != "}":
        name, end = _DECODER.raw_decode(text, _after_space(text, at))
        _, end = _DECODER.raw_decode(text, _after_space(text, _after_space(text, end) + 1))
        end = _after_space(text, end)
        yield name, at, end
        at = end + 1


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _asking_for_usage(body: bytes, options: Fields | None) -> bytes:
    """The body with `stream_options.include_usage` set. Usage in every chunk, which the client has not got so
    far, stays off.
    """
    wanted = {**(options or {}), "include_usage": True}
    if "continuous_usage_stats" in wanted:
        wanted["continuous_usage_stats"] = False
    return _with_fields(body, {"stream_options": wanted})


def _with_fields(body: bytes, added: Fields) -> bytes:
    """`body`, a JSON object, with what is in `added`, which goes last, where it wins over what was there. All
    other bytes stay, but for their encoding, which becomes UTF-8. Nothing is read again.
    """
    end = _utf8(body).rstrip(b" \t\r\n")
    comma = b"" if end[:-1].rstrip(b" \t\r\n").endswith(b"{") else b","
    return b"%b%b%b}" % (end[:-1], comma, json.dumps(added)[1:-1].encode())


def _values(body: bytes) -> int:
    """No fewer than there are values in a body, at the cost of looking at its bytes."""
    return body.count(b",") + 4 * (body.count(b"[") + body.count(b"{"))


def _loads(body: bytes) -> Any:
    """`json.loads`, by a shorter way for what clients send: UTF-8 that begins with an object's first name.
    Raises ValueError, RecursionError.
    """
    if body.startswith(b'{"'):
        text = body.decode("utf-8", "surrogatepass")
        try:
            value, end = _SCAN(text, 0)
        except StopIteration:
            end = -1
        if end == len(text):
            return value
    return json.loads(body)


def _utf8(body: bytes) -> bytes:
    """The same text in the encoding that JSON has by default, without a mark of its order of bytes."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    return body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


def _prompts(value: object) -> int:
    """How many prompts are in `prompt`: a list of token ids is one."""
    if type(value) is list:
        return len(value) if value and type(value[0]) is not int else 1
    return 0 if value is None else 1


def _length(value: object) -> int:
    return len(value) if type(value) in (list, dict) and value else 1  # type: ignore[arg-type]


def _names(fields: Fields) -> tuple[str, Mapping[str, str]]:
    """The end user by OpenAI's old and new name or by Anthropic's, and what names the interaction."""
    if _NAMING_FIELDS.isdisjoint(fields):
        return "", _NOTHING
    metadata = fields.get("metadata")
    user, session = _user_and_session(_text(_inside(metadata, "user_id")))
    conversation = fields.get("conversation")
    names = {
        "previous_response_id": _text(fields.get("previous_response_id")),
        "conversation": _text(conversation) or _text(_inside(conversation, "id")),
        "session_id": _text(fields.get("session_id")),
        "vllm_xargs.session_id": _text(_inside(fields.get("vllm_xargs"), "session_id")),
        "metadata.session_id": _text(_inside(metadata, "session_id")),
        "metadata.user_id": session,
    }
    return _text(fields.get("user")) or _text(fields.get("safety_identifier")) or user, names


def _said(fields: Fields, wanted: tuple[BodyField, ...]) -> Mapping[BodyField, str]:
    """The wanted fields that hold a text; of Anthropic's user without the session in it."""
    said: dict[BodyField, str] = {}
    for path in wanted:
        value: object = fields
        for name in path:
            value = _inside(value, name)
        text = _text(value)
        if text and path == _USER_ID:
            text = _user_and_session(text)[0]
        if text:
            said[path] = text
    return said


def _user_and_session(user_id: str) -> tuple[str, str]:
    """Anthropic's `user_id`, which Claude Code fills with its session as well: each session would be another
    user. Its two ways are `user_..._session_<id>` and JSON with `session_id`.
    """
    if user_id.startswith("{"):
        try:
            fields = json.loads(user_id)
        except (ValueError, RecursionError):
            return user_id, ""
        session = _text(_inside(fields, "session_id"))
        if not session:
            return user_id, ""
        return json.dumps({name: value for name, value in fields.items() if name != "session_id"}), session
    match = _SESSION.fullmatch(user_id) if user_id.startswith("user_") else None
    return (user_id, "") if match is None else (match["user"], match["session"])


def _inside(value: object, name: str) -> object:
    return value.get(name) if type(value) is dict else None


def _text(value: object) -> str:
    return value if type(value) is str else ""


def boolean(value: object) -> bool:
    """Pydantic's lax boolean; what it would refuse is false, the engine refuses it."""
    if value is True or value is False:
        return value
    if type(value) is str:
        return value.lower() in _TRUE
    return value == 1


def integer(value: object) -> int | None:
    """Pydantic's lax integer; None for what it would refuse, and for what is not above zero."""
    if type(value) is int:
        return value if value > 0 else None
    if value is True:
        return 1
    if type(value) is str:
        whole = _WHOLE.fullmatch(value.strip())
        try:
            value = int(whole[1]) if whole else None
        except ValueError:  # Python has a limit to digits, and so has pydantic
            return None
    elif type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or value <= 0:
        return None
    return value
