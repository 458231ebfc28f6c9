"""TLS of the listeners: certificates from files, which are looked at with each new connection and may be replaced at any time."""

import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc

from ..settings import InvalidSettings, ServerSettings, is_local
from ..spec import read_file

logger = logging.getLogger(__name__)

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name: dates are read here, and judged by the clients."""
ED25519 = b"MC4CAQAwBQYDK2Vw"
"""How the PEM file of every Ed25519 key begins; gRPC offers no signature algorithm for it, so that no client could connect."""

MISMATCHES = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
"""What OpenSSL says of a key that is not the certificate's; the last of a key of another type."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What the files held at one moment, checked: all in PEM, and a context with the same for listeners that are not gRPC's."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    begins_at: float
    ends_at: float

    @classmethod
    def check(cls, certificate: bytes, key: bytes, client_ca: bytes | None) -> "KeyPair":
        """Check that the key is the certificate's and that both, and the clients' authorities, can be used.

        Raises InvalidSettings, which names the setting whose file is wrong.
        """
        if b"ENCRYPTED" in key:
            raise InvalidSettings("tls_key: found an encrypted key; allowed: one without a passphrase, in PEM")
        if ED25519 in key:
            raise InvalidSettings("tls_key: found an Ed25519 key; allowed: RSA, or ECDSA on P-256 or P-384")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and later, as gRPC's own
        _load(context, certificate, key)
        begins_at, ends_at = _read_dates(context, certificate)
        if client_ca is not None:
            _trust(context, "tls_client_ca", client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return cls(certificate, key, client_ca, context, begins_at, ends_at)

    def for_grpc(self) -> grpc.ServerCertificateConfiguration:
        """Return the same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)

    def warn_of_dates(self) -> None:
        """Log a warning if clients will refuse the certificate now."""
        day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.ends_at))
        if time.time() > self.ends_at:
            text = "tls_cert: the certificate has expired (%s), and clients refuse it; once the file is replaced they come again"
            logger.warning(text, day)
        elif time.time() < self.begins_at:
            logger.warning("tls_cert: the certificate is not valid yet, and clients refuse it: is the clock right?")


class Certificates:
    """The files of `tls_cert`, `tls_key` and `tls_client_ca`, and what they held when they were last right. Any thread."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Read the files, by the names of the settings. Raises InvalidSettings if they cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._look()
        self._pair = self._read()
        self._has_warned = False

    @classmethod
    def read(cls, settings: ServerSettings) -> "Certificates | None":
        """Read what the settings name; None if there is to be no TLS. Raises InvalidSettings."""
        found = {name: getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
        files = {name: path for name, path in found.items() if path is not None}
        if not files:
            return None
        for name in ("tls_cert", "tls_key"):
            if name not in files:
                raise InvalidSettings(f"{name}: found nothing; needed: a file in PEM, as {' and '.join(files)} is set")
        return cls(files)

    def latest(self) -> KeyPair:
        """Return what the files hold now, or held when they were last right; each change is read, and logged, once."""
        with self._lock:
            seen = self._look()  # before they are read: what changes meanwhile is seen the next time
            if seen != self._seen:
                self._seen = seen
                self._renew()
            if not self._has_warned and not self._pair.begins_at < time.time() < self._pair.ends_at:
                self._has_warned = True
                self._pair.warn_of_dates()
            return self._pair

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one listener; with each new connection they ask for the latest."""
        given = self.latest()

        def renew() -> Any:  # None is "as before", which the stubs do not know
            nonlocal given  # `grpc` asks on one thread at a time
            before, given = given, self.latest()
            return None if given is before else given.for_grpc()

        must_show_one = given.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(given.for_grpc(), renew, require_client_authentication=must_show_one)

    def for_http_server(self) -> dict[str, Any]:
        """Return what `prometheus_client.start_http_server` takes for the same over HTTPS."""
        files = {name: str(path) for name, path in self._files.items()}
        client_ca = files.get("tls_client_ca")
        options = {"client_cafile": client_ca, "client_auth_required": client_ca is not None}
        return {"certfile": files["tls_cert"], "keyfile": files["tls_key"], **options}

    def renew_http_server(self, server: WSGIServer) -> None:
        """Have a server that listens with `for_http_server` use the latest from now on, and no client hold up another one."""

        def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            connection.context = self.latest().context

        listener: Any = server.socket
        listener.context.sni_callback = renew  # called by each handshake, whether the client names a host or not
        listener.do_handshake_on_connect = False  # but by the connection's own thread
        server.handle_error = _note_failure  # type: ignore[method-assign, assignment]  # it would print a traceback

    def _renew(self) -> None:
        try:
            self._pair = self._read()
        except InvalidSettings as error:
            logger.warning("certificates: the files have changed and cannot be used, so the ones before stay in use: %s", error)
        else:
            self._has_warned = False
            until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._pair.ends_at))
            logger.info("certificates: renewed from %s, valid until %s", ", ".join(map(str, self._files.values())), until)

    def _look(self) -> list[object]:
        return [_identify(path) for path in self._files.values()]

    def _read(self) -> KeyPair:
        contents = {}
        for name, path in self._files.items():
            try:
                contents[name] = read_file(path)
            except OSError as error:
                raise InvalidSettings(f"{name}: {path}: {error.strerror}") from None
        try:
            return KeyPair.check(contents["tls_cert"], contents["tls_key"], contents.get("tls_client_ca"))
        except InvalidSettings as error:
            files = ", ".join(map(str, self._files.values()))
            raise InvalidSettings(f"{error} ({files})") from None


def warn_of_plain_listeners(settings: ServerSettings) -> None:
    """Log a warning for each listener that other machines can reach in the clear, but for that of health alone."""
    if settings.tls_cert is None:
        for name in ("listen", "admin_listen", "metrics_listen"):
            address = getattr(settings, name)
            if address and not is_local(address):
                text = "%s: other machines can reach %s, and it speaks plain text; set tls_cert and tls_key, or listen on 127.0.0.1"
                logger.warning(text, name, address)


def _note_failure(request: object, client: object) -> None:
    logger.debug("metrics: a connection of %s failed: %s", client, sys.exc_info()[1])


def _identify(path: Path) -> object:
    """Return what changes when a file is written or replaced, links on the way to it included; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a pair, from a file that lies in memory only: the ssl module takes no bytes. Raises InvalidSettings."""
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "tls_cert", certificate)
    if b"PRIVATE KEY-----" not in key:
        raise InvalidSettings("tls_key: found no key; allowed: a private key in PEM")
    with os.fdopen(os.memfd_create("pair"), "wb") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=b"")
        except ssl.SSLError as error:
            if error.reason in MISMATCHES:
                raise InvalidSettings("tls_key: found the key of another certificate; needed: that of tls_cert") from None
            reason = error.reason or "damaged PEM"
            raise InvalidSettings(f"tls_key: the pair of tls_cert and tls_key cannot be used: {reason}") from None


def _trust(context: ssl.SSLContext, name: str, certificates: bytes) -> None:
    """Trust all certificates of a file. Raises InvalidSettings."""
    try:
        context.load_verify_locations(cadata=certificates.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise InvalidSettings(f"{name}: found no certificate, or a damaged one; allowed: certificates in PEM") from None


def _read_dates(context: ssl.SSLContext, certificate: bytes) -> tuple[float, float]:
    """Return from when until when a loaded certificate is valid, seconds since 1970, by a handshake with ourselves."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
    _trust(trusting, "tls_cert", certificate)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (client, server, client):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        found = client.getpeercert() or {}
    except ssl.SSLError as error:
        text = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        raise InvalidSettings(f"tls_cert: clients would not accept the certificate as a server's: {text}") from None
    return ssl.cert_time_to_seconds(str(found["notBefore"])), ssl.cert_time_to_seconds(str(found["notAfter"]))
