"""Certificates for tests: an authority, and what it signs, made by `openssl`."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


def make_authority(folder: Path) -> Pair:
    """Make an authority of its own."""
    pair = Pair(folder / "ca.pem", folder / "ca.key")
    _openssl("req", "-x509", *_new_key(pair.key), "-subj", "/CN=authority", "-days", "2", "-out", pair.certificate)
    return pair


def sign(folder: Path, authority: Pair, common_name: str) -> Pair:
    """Make a certificate with this subject, for localhost and 127.0.0.1."""
    pair = Pair(folder / f"{common_name}.pem", folder / f"{common_name}.key")
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    signed = ("-CA", authority.certificate, "-CAkey", authority.key, "-days", "2")
    _openssl("req", "-x509", *_new_key(pair.key), "-subj", f"/CN={common_name}", *names, *signed, "-out", pair.certificate)
    return pair


def _new_key(file: Path) -> tuple[object, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", file)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
