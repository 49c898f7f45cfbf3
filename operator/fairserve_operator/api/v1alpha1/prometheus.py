"""The Prometheus that a ServingPool's overload signals are read from: where it is, and who is believed."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from fairserve_operator.api.v1alpha1.fields import Flag, Model, SecretKeyRef, cel, one_of_rule

_ONE_WAY_TO_AUTHENTICATE = one_of_rule("bearerToken", "basic")
_SKIP_XOR_CA = "insecureSkipVerify makes ca pointless; set one of them"
_TLS_NEEDS_HTTPS = "tls needs a url that begins with https://"
_NO_URL = "is not a URL: host and port can't be told apart"


class BearerToken(Model):
    """A token in the header `Authorization: Bearer`."""

    secret_ref: SecretKeyRef = Field(description="Where the token is.")


class BasicAuth(Model):
    """A user and a password."""

    username: SecretKeyRef = Field(description="Where the user's name is.")
    password: SecretKeyRef = Field(description="Where the password is.")


class PrometheusAuth(Model, json_schema_extra=cel(_ONE_WAY_TO_AUTHENTICATE)):
    """How the operator shows Prometheus who it is. Exactly one of the fields is set."""

    bearer_token: BearerToken | None = Field(None, description="By a token. Unset: by `basic`.")
    basic: BasicAuth | None = Field(None, description="By a user and a password. Unset: by `bearerToken`.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.bearer_token is None) == (self.basic is None):
            raise ValueError(_ONE_WAY_TO_AUTHENTICATE[1])
        return self


class PrometheusTls(
    Model,
    json_schema_extra=cel(
        (
            "!has(self.ca) || !has(self.insecureSkipVerify) || !self.insecureSkipVerify",
            _SKIP_XOR_CA,
        )
    ),
):
    """How the operator knows that it speaks to Prometheus."""

    ca: SecretKeyRef | None = Field(
        None,
        description="Certificates in PEM; only what they have signed is believed. Unset: the certificate "
        "authorities of the operator's image.",
    )
    insecure_skip_verify: Flag = Field(
        False,
        description="Believe any certificate. Who is in between can then read the credentials and decide "
        "whether the pool is overloaded. Default: false.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.ca is not None and self.insecure_skip_verify:
            raise ValueError(_SKIP_XOR_CA)
        return self


def _is_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # A bad port is told when it is asked for.
    except ValueError as problem:
        raise ValueError(_NO_URL) from problem
    if not host:
        raise ValueError(_NO_URL)
    return url


#: Without a user and password, which would be shown in status and logs. Brackets are those of an address.
_HOST = r"(\[[0-9A-Fa-f:.]+\](:[0-9]*)?|[!-.0-?A-Z\\^-~]+)"
Url = Annotated[
    str,
    Field(
        pattern=rf"^https?://{_HOST}(/[!-~]*)?$",
        max_length=1024,
        json_schema_extra=cel(
            (
                "isURL(self) && url(self).getHostname() != '' && "
                "(url(self).getPort() == '' || int(url(self).getPort()) <= 65535)",
                _NO_URL,
            )
        ),
    ),
    AfterValidator(_is_url),
]


class Prometheus(
    Model,
    json_schema_extra=cel(("!has(self.tls) || self.url.startsWith('https://')", _TLS_NEEDS_HTTPS)),
):
    """Where signals are read."""

    url: Url = Field(
        description="Base URL of a Prometheus that scrapes the pool's pods, without user and password. "
        "Redirects are not followed."
    )
    auth: PrometheusAuth | None = Field(
        None,
        description="Credentials, from Secrets of the pool's namespace. A changed Secret takes effect with "
        "the next evaluation. Unset: none.",
    )
    tls: PrometheusTls | None = Field(
        None, description="Whose certificate is believed. Unset: the defaults of its fields."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.tls is not None and not self.url.startswith("https://"):
            raise ValueError(_TLS_NEEDS_HTTPS)
        return self
