"""Log lines for machines name the object that they are about."""

from __future__ import annotations

import json
import logging

from fairserve_operator.decide.resources import TENANT, ObjectKey
from fairserve_operator.logs import JsonFormatter, about


def test_object_is_given_as_fields() -> None:
    record = logging.makeLogRecord({"msg": "left %s out", "args": ("it",), "name": "fairserve_operator"})
    plain = json.loads(JsonFormatter().format(record))
    record.__dict__.update(about(ObjectKey(TENANT, "ns", "team-a")))
    named = json.loads(JsonFormatter().format(record))
    assert named == {**plain, "kind": "Tenant", "namespace": "ns", "name": "team-a"}
    assert plain["message"] == "left it out"
