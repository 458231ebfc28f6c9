"""How a command's connection is made, by the options that each command with a connection has: TLS, and the caller's token."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from twinfer.channel import Metadata, Option, open_channel, token_metadata
from twinfer.client import Client
from twinfer.tls import tls_credentials

TOKEN_VARIABLE = "TWINFER_TOKEN"


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection takes besides the address."""

    credentials: grpc.ChannelCredentials | None = None
    options: tuple[Option, ...] = ()
    token: str | None = field(default=None, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The same, as a client takes it."""
        return {"credentials": self.credentials, "options": self.options, "token": self.token}

    def client(self, server: str, **settings: Any) -> Client:
        """Make a client. Raises typer.BadParameter where others could read the token."""
        self.metadata(server)
        return Client(server, **self.settings, **settings)

    def channel(self, server: str, options: list[Option]) -> grpc.Channel:
        """Make a channel, for the operators' service, of which `Client` knows nothing."""
        return open_channel(server, self.credentials, [*self.options, *options])

    def metadata(self, server: str) -> Metadata | None:
        """Return the metadata of calls over such a channel. Raises typer.BadParameter where others could read the token."""
        try:
            return token_metadata(self.token, server, is_encrypted=self.credentials is not None)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def read_access(
    tls: Annotated[
        bool, typer.Option("--tls", envvar="TWINFER_TLS", help="Connect by TLS; the server's authority is public.")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="TWINFER_TLS_CA", help="Connect by TLS; the server's authority, in PEM.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="TWINFER_TLS_CLIENT_CERT", help="Your certificate, if it wants one.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar="TWINFER_TLS_CLIENT_KEY", help="The private key of your certificate.")
    ] = None,
    tls_server_name: Annotated[
        str, typer.Option(metavar="NAME", envvar="TWINFER_TLS_SERVER_NAME", help="The name in the server's certificate.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"This caller's token. Default: what the variable {TOKEN_VARIABLE} says.")
    ] = None,
) -> Access:
    """Return what the options say. Raises typer.BadParameter."""
    token = _read_token(token_file)
    if not (tls or tls_ca or tls_cert or tls_key or tls_server_name):
        return Access(token=token)
    try:
        credentials = tls_credentials(tls_ca, tls_cert, tls_key)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    return Access(credentials, (("grpc.ssl_target_name_override", tls_server_name),) if tls_server_name else (), token)


def _read_token(file: Path | None) -> str | None:
    """Return the caller's token, from a file or the environment: an argument could be seen in the list of processes."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--token-file") from None


def with_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `read_access`, and what they say as its parameter `access`."""
    ours = inspect.signature(read_access, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)

    @wraps(command)
    def run(**values: Any) -> None:
        access = read_access(**{name: values.pop(name) for name in ours})
        command(access=access, **values)

    parameters = [one for one in own.parameters.values() if one.name != "access"] + list(ours.values())
    named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]  # typer reads it
    return run
