"""Certificates for the webhook, made and read. Times are seconds since the epoch, and given.

Keys are on the curve P-256. A certificate is dated back by an hour, for API servers whose clock is behind.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY_S = 86_400.0
AUTHORITY_S = 3650 * _DAY_S
SERVING_S = 90 * _DAY_S
BACKDATED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, and what is decided by."""

    pem: bytes
    names: frozenset[str]  #: DNS names and addresses that it is for
    made_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its private key, as PEM."""

    certificate: Certificate
    key: bytes


def read_certificates(pem: bytes) -> tuple[Certificate, ...]:
    """All certificates of a PEM text, one or more. Raises ValueError."""
    try:
        return tuple(_certificate(each) for each in x509.load_pem_x509_certificates(pem))
    except (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from error


def is_pair(certificate: Certificate, key: bytes) -> bool:
    """Whether this is the certificate's private key, unencrypted and of our kind."""
    try:
        private = serialization.load_pem_private_key(key, None)
        public = x509.load_pem_x509_certificate(certificate.pem).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):  # A TypeError is an encrypted one's.
        return False
    return isinstance(private, ec.EllipticCurvePrivateKey) and private.public_key() == public


def is_authority(certificate: Certificate) -> bool:
    """Whether it may sign others."""
    try:
        extensions = x509.load_pem_x509_certificate(certificate.pem).extensions
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


def is_signed_by(certificate: Certificate, authority: Certificate) -> bool:
    """Whether the authority has signed it."""
    signer = x509.load_pem_x509_certificate(authority.pem)
    try:
        x509.load_pem_x509_certificate(certificate.pem).verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def new_authority(now: float) -> Pair:
    """An authority that signs certificates of servers and nothing else."""
    key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    # Each has another name: of two of one name a verifier may try the wrong one.
    name = _name(f"fairserve-webhook-ca-{serial:x}"[:40])
    builder = _dated(now, now + AUTHORITY_S).serial_number(serial).subject_name(name).issuer_name(name)
    builder = (
        builder.public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def new_serving(authority: Pair, names: Iterable[str], now: float) -> Pair:
    """A server's certificate for these names and addresses, which ends no later than its authority's."""
    signer = x509.load_pem_x509_certificate(authority.certificate.pem)
    signing_key = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + SERVING_S, authority.certificate.expires_at)
    builder = _dated(now, until).serial_number(x509.random_serial_number())
    builder = (
        builder.subject_name(_name("fairserve-webhook"))
        .issuer_name(signer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in sorted(names)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    return _pair(builder.sign(signing_key, hashes.SHA256()), key)


def _certificate(certificate: x509.Certificate) -> Certificate:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    addresses = (str(each) for each in names.get_values_for_type(x509.IPAddress))
    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM),
        names=frozenset((*names.get_values_for_type(x509.DNSName), *addresses)),
        made_at=certificate.not_valid_before_utc.timestamp() + BACKDATED_S,
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(_certificate(certificate), text)


def _dated(now: float, until: float) -> x509.CertificateBuilder:
    begins, ends = (datetime.fromtimestamp(int(each), UTC) for each in (now - BACKDATED_S, until))
    return x509.CertificateBuilder().not_valid_before(begins).not_valid_after(ends)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
