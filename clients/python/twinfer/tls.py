"""TLS of the clients: credentials from files, and what the end of a handshake that failed means."""

import ssl
from pathlib import Path

import grpc

# What gRPC's core, and OpenSSL below it, put into the text of a connection that could not be made, the narrowest first.
REFUSALS = {
    "certificate has expired": "the server's certificate has expired; whoever runs the server has to renew it",
    "certificate is not yet valid": "the server's certificate is not valid yet; is this machine's clock right?",
    "Hostname Verification Check failed": "the server's certificate is for another host name than the one that it was called by;"
    " call it by a name in its certificate, or say which one to expect (--tls-server-name, tls_server_name=)",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not from an authority that this client trusts;"
    " give the file of its authority (--tls-ca, tls_credentials(ca=))",
    "WRONG_VERSION_NUMBER": "the server speaks plain text, and this client TLS; turn TLS on there, or leave it out here",
}
NO_CONNECTION = "failed to connect to all addresses"
# How it looks here when the server ends the connection in the handshake, or because it understands nothing of what it reads. A
# proxy whose server is not up yet may do the same, so a client that waits for a server goes on.
CLOSINGS = ("Socket closed", "Connection reset by peer", "Broken pipe", "Handshake read failed")
CLOSING_HINT = (
    "the server closed the connection at once: it speaks TLS and this client does not (--tls-ca, credentials=), or it takes"
    " no client without a certificate from an authority that it trusts (--tls-cert and --tls-key, tls_credentials(cert=, key=))"
)


def tls_credentials(
    ca: Path | str | None = None, cert: Path | str | None = None, key: Path | str | None = None
) -> grpc.ChannelCredentials:  # fmt: skip
    """Return credentials for a connection by TLS, from files in PEM; they are read once.

    ca: the authorities of which one has issued the server's certificate. Default: the public ones that gRPC comes with, or the
        file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
    cert, key: the client's own certificate and its private key, for a server that wants them.
    Raises OSError for a file that cannot be read, ValueError for one that cannot be used.
    """
    if (cert is None) != (key is None):
        raise ValueError("of the client's certificate and its key, found one; needed: both or none.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities = None if ca is None else Path(ca).read_bytes()
    if authorities is not None:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise ValueError(f"{ca}: found no certificate; allowed: certificates in PEM.") from None
    if cert is None or key is None:
        return grpc.ssl_channel_credentials(authorities)
    pair = Path(key).read_bytes(), Path(cert).read_bytes()
    if b"ENCRYPTED" in pair[0]:
        raise ValueError(f"{key}: found an encrypted key; allowed: one without a passphrase.")
    try:
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        text = f"{cert} and {key}: they are no certificate and its key, in PEM: {error.reason or 'damaged'}."
        raise ValueError(text) from None
    return grpc.ssl_channel_credentials(authorities, *pair)


def is_unexplained(details: str) -> bool:
    """Return whether no connection came about for a failed call, by the status's details, and nothing below says why."""
    return NO_CONNECTION in details and not (explain_refusal(details) or explain_closing(details))


def explain_refusal(details: str) -> str:
    """Return what TLS has against the connection of a failed call, by the status's details, and what to do; "" if nothing."""
    return next((text for sign, text in REFUSALS.items() if sign in details), "") if NO_CONNECTION in details else ""


def explain_closing(details: str) -> str:
    """Return why the server may have closed the connection of a failed call at once, by the status's details; "" if it has not."""
    return CLOSING_HINT if NO_CONNECTION in details and any(sign in details for sign in CLOSINGS) else ""
