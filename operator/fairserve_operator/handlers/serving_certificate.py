"""The certificate by which a server answers, exchanged while it runs."""

from __future__ import annotations

import os
import ssl

from fairserve_operator.manifests.certificates import Certificate, read_certificates


class ServingCertificate:
    """None at first: handshakes fail until one is loaded. `context` is the server's, whatever is loaded.

    Each certificate gets a context of its own, chosen in each handshake. Loaded into one, a certificate would
    not replace one with another kind of key.
    """

    def __init__(self) -> None:
        self.context = _context()
        self.context.sni_callback = self._choose
        self.current: Certificate | None = None
        self._chosen: ssl.SSLContext | None = None

    def load(self, chain: bytes, key: bytes) -> Certificate:
        """Serve by this certificate from the next handshake on. Raises ValueError where they don't belong
        together; the one before stays.
        """
        certificate = read_certificates(chain)[0]
        chosen = _context()
        # The standard library reads files. The key goes to none that anybody could find.
        memory = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with os.fdopen(memory, "wb") as file:
                file.write(chain + b"\n" + key)
                file.flush()
                chosen.load_cert_chain(f"/proc/self/fd/{memory}", password=_no_password)
        except ssl.SSLError as error:
            raise ValueError(f"certificate and key don't belong together: {error}") from error
        self.current, self._chosen = certificate, chosen
        return certificate

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        if self._chosen is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._chosen
        return None


def _no_password() -> str:
    """Called for an encrypted key; without this OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
