"""Certificates for tests, made by the openssl command: good ones, and one for each thing that can be wrong with one."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.servers import ROOT
from twinfer import tls_credentials

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
PAST = ("20200101000000Z", "20200201000000Z")
FUTURE = ("20500101000000Z", "20501231000000Z")
# What `openssl ca` needs to be told, and `openssl x509` cannot be: from when until when.
CONFIGURATION = """
[ca]
default_ca = authority
[authority]
database = {folder}/index.txt
new_certs_dir = {folder}
policy = policy
default_md = sha256
rand_serial = yes
unique_subject = no
copy_extensions = copy
default_days = 7
[policy]
commonName = supplied
"""


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority, and the certificates that it has issued: NAME.pem with NAME.key."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """Make one as the script does that operators try TLS with; it brings `server` and `client`."""
        if shutil.which("openssl") is None:
            pytest.skip("there is no `openssl` on the PATH, which makes the certificates")
        subprocess.run(["sh", ROOT / "deploy" / "certificates.sh", folder], check=True, capture_output=True)
        (folder / "index.txt").touch()
        (folder / "ca.cnf").write_text(CONFIGURATION.format(folder=folder))
        return cls(folder)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def issue(self, name: str, *extensions: str, valid: tuple[str, str] | None = None, key: str = "server.key") -> None:
        """Issue a certificate for one of the keys that are there already."""
        request = self.folder / f"{name}.csr"
        added = [word for extension in extensions for word in ("-addext", extension)]
        openssl("req", "-new", "-key", self.folder / key, "-subj", f"/CN={name}", "-out", request, *added)
        dates = ["-startdate", valid[0], "-enddate", valid[1]] if valid else []
        authority = ["-config", self.folder / "ca.cnf", "-cert", self.ca, "-keyfile", self.folder / "ca.key"]
        openssl("ca", "-batch", "-notext", *authority, *dates, "-in", request, "-out", self.folder / f"{name}.pem")
        shutil.copy(self.folder / key, self.folder / f"{name}.key")

    def serve(self, name: str = "server", *, asks_clients: bool = False) -> dict[str, Any]:
        """Return the settings of a server with one of the certificates."""
        certificate, key = self.pair(name)
        return {"tls_cert": certificate, "tls_key": key} | ({"tls_client_ca": self.ca} if asks_clients else {})

    def connect(self, client: str | None = None) -> grpc.ChannelCredentials:
        """Return a client's credentials, with one of the certificates or without."""
        return tls_credentials(self.ca, *(self.pair(client) if client else ()))


def replace(files: dict[str, Path], authority: Authority, name: str) -> None:
    """Put another certificate and key in place, each at once, one after the other, as a tool does."""
    for source, path in zip(authority.pair(name), files.values(), strict=True):
        new = path.with_suffix(".new")
        shutil.copy(source, new)
        os.replace(new, path)


def openssl(*arguments: object) -> str:
    """Run a command of openssl; return what it prints."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_all(folder: Path) -> tuple[Authority, Authority]:
    """Make the authority with all certificates that tests use, and another one, which no server here trusts."""
    ours, other = Authority.make(folder / "ours"), Authority.make(folder / "other")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", ours.folder / "another.key")
    ours.issue("renewed", NAMES, key="another.key")
    ours.issue("elsewhere", "subjectAltName=DNS:example.org")
    ours.issue("expired", NAMES, valid=PAST)
    ours.issue("early", NAMES, valid=FUTURE)
    ours.issue("former client", "extendedKeyUsage=clientAuth", valid=PAST, key="client.key")
    return ours, other
