"""What can go wrong between the operator and the API server.

OperatorError
├── SetupError              the operator can't run as it was started; ends the process with a sentence
├── AstrayError             what is known is not what the API server has, and watches don't mend it
├── ForeignSecretError      a Secret of somebody else has the name of a boot Secret
├── ContestedError          another operator keeps writing another document
└── ApiServerError          a call to the API server failed
    ├── NotFoundError       the object, or its kind, isn't there
    ├── ConflictError       the object exists already, or changed since it was read
    ├── FencedError         another operator may act, so nothing was sent
    └── UnreachableError    no answer

Sidecars and Prometheus raise nothing: that they fail is expected, so their clients return it as a value.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Root of the operator's own exceptions."""


class SetupError(OperatorError):
    """The operator can't run as it was started. The message is for the person who started it."""


class AstrayError(OperatorError):
    """What is known is not what the API server has, and watches don't mend it. Begin anew."""


class ForeignSecretError(OperatorError):
    """A Secret of somebody else has the name that a pool's boot Secret must have."""


class ContestedError(OperatorError):
    """Another operator keeps writing another document into a boot Secret; it is left to it for a while."""


class ApiServerError(OperatorError):
    """A call to the API server failed. The message names the object and gives the server's words."""

    def __init__(self, what: str, status: int, words: str) -> None:
        super().__init__(f"{what}: {words}" + (f" (HTTP {status})" if status else ""))
        self.what = what
        self.status = status  #: of HTTP; 0 where there was no answer


class NotFoundError(ApiServerError):
    """The object, or its kind, isn't there."""


class ConflictError(ApiServerError):
    """The object exists already, or it changed since it was read."""


class FencedError(ApiServerError):
    """Another operator may act, so nothing was sent."""

    def __init__(self, what: str) -> None:
        super().__init__(what, 0, "left to the operator that holds the Lease")


class UnreachableError(ApiServerError):
    """The API server gave no answer."""
