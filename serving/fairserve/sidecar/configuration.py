"""The configuration that runs: from the boot file, then from the operator's pushes. Replaced whole or not.

A document is validated before anything changes. An older generation never replaces a newer one, so that a
late push can't undo a later one.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fairserve.config import SchedulerConfig
from fairserve.core.settings import Settings
from fairserve.difference import Difference, Held, WrongBaseError, apply
from fairserve.sidecar.identity import IdentityTable

#: A document is at most this long, before and after decompression.
MAX_BYTES = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"


class DocumentError(ValueError):
    """A document that can't be used. The message names every wrong field."""


class DocumentTooLargeError(DocumentError):
    """A document of more than `MAX_BYTES`."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A document and what is made of it once, so that it takes no time to run it."""

    held: Held
    table: IdentityTable

    @property
    def document(self) -> SchedulerConfig:
        """The document."""
        return self.held.config

    @property
    def settings(self) -> Settings:
        """What the scheduler decides by."""
        return self.held.settings

    @property
    def hash(self) -> str:
        """The document's content hash."""
        return self.held.hash

    @property
    def generation(self) -> int:
        """Its place in the order of documents."""
        return self.held.config.generation


class _Parts(BaseModel):
    """What an index says of a document that is in parts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    slot: Literal["a", "b"]
    parts: Annotated[int, Field(gt=0, lt=1000)]
    sha256: str


class Verdict(Enum):
    """Whether a document may replace the one that runs."""

    ADOPT = auto()
    SAME = auto()  #: it runs already
    OUTDATED = auto()  #: the one that runs is newer, or another of the same generation


def read_document(data: bytes) -> Configuration:
    """A document from JSON, gzipped or not. Raises DocumentError."""
    try:
        document = SchedulerConfig.from_bytes(_plain(data))
    except ValidationError as error:
        raise DocumentError(describe_problems(error)) from error
    try:
        table = IdentityTable(document)
    except ValueError as error:
        raise DocumentError(str(error)) from error
    return Configuration(Held.of(document), table)


def read_difference(data: bytes, running: Configuration | None) -> Configuration:
    """What a difference from JSON, gzipped or not, makes of the running document; the running one where it
    has been applied already. Raises DocumentError, and WrongBaseError if it starts from another document.
    """
    try:
        difference = Difference.from_bytes(_plain(data))
        if running is None:
            raise WrongBaseError("no document runs yet")
        if (difference.generation, difference.hash) == (running.generation, running.hash):
            return running
        held = apply(difference, running.held)
        table = running.table.after(running.held, held)
    except ValidationError as error:
        raise DocumentError(describe_problems(error)) from error
    except WrongBaseError:
        raise
    except ValueError as error:  # a difference that makes no sense, or an issuer's key that can't be used
        raise DocumentError(str(error)) from error
    return Configuration(held, table)


def read_file(path: Path) -> Configuration:
    """A document from a file, or from its parts (docs/reference/boot-secret.md). Raises DocumentError, which
    names the file.
    """
    index = path.with_name(f"{path.name}.parts")
    try:
        in_parts = not path.exists() and index.exists()
        return read_document(_joined(path, index) if in_parts else path.read_bytes())
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from error
    except DocumentError as error:
        raise DocumentError(f"{path}: {error}") from error


def _joined(path: Path, index: Path) -> bytes:
    """The parts that the index names. It tells their hash, so that those of two documents are never mixed."""
    try:
        parts = _Parts.model_validate_json(index.read_bytes())
    except ValidationError as error:
        raise DocumentError(f"{index.name}: {describe_problems(error)}") from error
    names = [f"{path.name}.{parts.slot}.{number}" for number in range(parts.parts)]
    joined = b"".join(path.with_name(name).read_bytes() for name in names)
    if hashlib.sha256(joined).hexdigest() != parts.sha256:
        raise DocumentError(f"{index.name} and the parts are of different documents")
    return joined


def judge(running: Configuration | None, offered: Configuration) -> Verdict:
    """Whether `offered` may replace `running`. Raises DocumentError for another pool's document."""
    if running is None:
        return Verdict.ADOPT
    if offered.document.pool != running.document.pool:
        raise DocumentError(
            f"pool: this sidecar serves {running.document.pool}, the document is {offered.document.pool}'s"
        )
    if offered.generation == running.generation:
        return Verdict.SAME if offered.hash == running.hash else Verdict.OUTDATED
    return Verdict.ADOPT if offered.generation > running.generation else Verdict.OUTDATED


def _plain(data: bytes) -> bytes:
    return _decompress(data) if data.startswith(_GZIP) else data


def _decompress(data: bytes) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        plain = decompressor.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise DocumentError(f"not a gzip file: {error}") from error
    if len(plain) > MAX_BYTES:
        raise DocumentTooLargeError(f"longer than {MAX_BYTES} bytes")
    if not decompressor.eof:
        raise DocumentError("the gzip file is cut short")
    return plain


def describe_problems(error: ValidationError) -> str:
    """All problems as one line, without the input: it may hold what should not be logged."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'document'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    )
