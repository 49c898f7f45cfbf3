"""The control port's certificate: read from files that may be replaced while we run.

A pair of files is replaced in two steps or one. What can't be loaded, because only half of it is there yet
or it is no certificate, changes nothing: the old pair serves until a new one is whole.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from fairserve.sidecar.options import OptionError, TlsFiles

_LOG = logging.getLogger(__name__)

#: What tells one content of a file from another: inode, size, nanoseconds of its last change.
_Stamp = tuple[int, int, int]


class Certificate:
    """A server's TLS context, at least TLS 1.2, that follows its files."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises OptionError for files that can't be used."""
        self._files = files
        self._seen: tuple[_Stamp, _Stamp] | None = None
        self.context = _context()
        try:
            self._load()
        except OSError as error:  # ssl.SSLError is one
            raise OptionError(f"--control-tls-cert, --control-tls-key: {_told(error)}") from error

    def refresh(self) -> None:
        """Load the files again if they have changed: new connections get what they hold. Call it about each
        second.
        """
        try:
            if self._load():
                _LOG.info("the control port has a new certificate: %s", self._files.certificate)
        except OSError as error:
            _LOG.error("the control port keeps its old certificate: %s", _told(error))

    def _load(self) -> bool:
        seen = (_stamp(self._files.certificate), _stamp(self._files.key))
        if seen == self._seen:
            return False
        self._seen = seen
        # A half that is loaded spoils a context, so another one tries first.
        for context in (_context(), self.context):
            context.load_cert_chain(self._files.certificate, self._files.key)
        return True


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
