"""Addresses on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairserve.sidecar.options import (
    Address,
    OptionError,
    TlsFiles,
    parse_address,
    parse_engine,
    parse_otlp,
    parse_tls,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [("1.2.3.4:80", Address("1.2.3.4", 80)), ("[::1]:0", Address("::1", 0)), ("h:1", Address("h", 1))],
)
def test_address(text, address):
    assert parse_address("--listen", text) == address


@pytest.mark.parametrize("text", ["", "h", ":80", "h:", "h:x", "h:70000", "h:-1"])
def test_bad_address_names_the_option(text):
    with pytest.raises(OptionError, match="--listen"):
        parse_address("--listen", text)


def test_engine():
    assert parse_engine("--engine", "http://127.0.0.1:8100/") == Address("127.0.0.1", 8100)
    assert parse_engine("--engine", "http://[::1]:8100") == Address("::1", 8100)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8100", "https://h:1", "http://h:1/v1", "http://h:99999", "http://u@h:1", "http://h:0"],
)
def test_bad_engine_names_the_option(url):
    with pytest.raises(OptionError, match="--engine"):
        parse_engine("--engine", url)


def test_collector():
    assert parse_otlp("--otlp-endpoint", None) is None
    for url in ("http://h:4318", "http://[::1]:4318", "https://h/behind/a/path"):
        assert parse_otlp("--otlp-endpoint", url + "/") == parse_otlp("--otlp-endpoint", url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:4318",
        "grpc://h:4317",
        "http://h:99999",
        "http://u:p@h:1",
        "http://h:1?x",
        "http://h:1/v1/traces/",
    ],
)
def test_bad_collector_names_the_option(url):
    with pytest.raises(OptionError, match="--otlp-endpoint"):
        parse_otlp("--otlp-endpoint", url)


def test_certificate_and_key_go_together():
    certificate, key = Path("c"), Path("k")
    assert parse_tls(certificate, key) == TlsFiles(certificate, key)
    assert parse_tls(None, None) is None
    for half in ((certificate, None), (None, key)):
        with pytest.raises(OptionError, match="--control-tls-cert and --control-tls-key"):
            parse_tls(*half)
