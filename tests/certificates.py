"""Certificates for tests, made by the openssl command."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority, and the certificates that it has issued: NAME.pem with NAME.key."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """Make one; it brings `server`."""
        if shutil.which("openssl") is None:
            pytest.skip("there is no `openssl` on the PATH, which makes the certificates")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ca", "server"):
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / f"{name}.key")
        made = cls(folder)
        openssl("req", "-x509", "-key", folder / "ca.key", "-subj", "/CN=authority", "-days", 2, "-out", made.ca)
        made.issue("server", NAMES)
        return made

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate and its key."""
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def issue(self, name: str, *extensions: str, key: str = "server.key") -> None:
        """Issue a certificate for one of the keys that are there already."""
        certificate, copied = self.pair(name)
        if key != copied.name:
            shutil.copy(self.folder / key, copied)
        added = [word for extension in extensions for word in ("-addext", extension)]
        authority = ("-CA", self.ca, "-CAkey", self.folder / "ca.key", "-days", 2)
        openssl("req", "-x509", "-key", copied, "-subj", f"/CN={name}", *added, *authority, "-out", certificate)

    def serve(self, name: str = "server", *, asks_clients: bool = False) -> dict[str, Any]:
        """Return the settings of a server with one of the certificates."""
        certificate, key = self.pair(name)
        return {"tls_cert": certificate, "tls_key": key} | ({"tls_client_ca": self.ca} if asks_clients else {})

    def connect(self, client: str | None = None) -> grpc.ChannelCredentials:
        """Return a client's credentials, with one of the certificates or without."""
        certificate, key = (path.read_bytes() for path in self.pair(client)) if client else (None, None)
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), key, certificate)


def openssl(*arguments: object) -> None:
    """Run a command of openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
