"""How the operator logs: one line an entry, as JSON for machines or as text for people.

Messages name objects, and in JSON they are fields as well. Values of Secrets never reach a logger, here or
anywhere.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

from fairserve_operator.decide.resources import ObjectKey


class LogFormat(StrEnum):
    """What a line looks like."""

    JSON = "json"
    PLAIN = "plain"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render time, level, logger, message, the object it is about, and traceback."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(object_ := getattr(record, "about", None), Mapping):
            entry |= object_
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def about(key: ObjectKey) -> dict[str, Mapping[str, str]]:
    """`extra` of a log call: the object that the entry is about, as fields of its own."""
    return {"about": {"kind": key.kind, "namespace": key.namespace, "name": key.name}}


def configure(log_format: LogFormat, verbose: bool) -> None:
    """Send all logs to stderr. Libraries speak only where something is wrong, unless `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fairserve_operator").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("kopf").setLevel(logging.DEBUG if verbose else logging.WARNING)
