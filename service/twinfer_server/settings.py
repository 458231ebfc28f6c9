"""What the operator sets: flags of `twinfer serve` and `TWINFER_*` variables, read once by the entry point.

A flag wins over its variable. A variable that begins with TWINFER_ and names no setting is an error.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import quote

PREFIX = "TWINFER_"
CLIENT_VARIABLES = frozenset(
    {
        "TWINFER_TLS",
        "TWINFER_TLS_CA",
        "TWINFER_TLS_CLIENT_CERT",
        "TWINFER_TLS_CLIENT_KEY",
        "TWINFER_TLS_SERVER_NAME",
        "TWINFER_TOKEN",
    }
)
"""What the client's commands read: no settings, but an environment may well have both."""
Seconds = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _is_host_and_port(value: str) -> bool:
    host, _, port = value.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) < 65536


def is_local(address: str) -> bool:
    """Return whether only this machine can reach HOST:PORT or unix:PATH."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return address.startswith("unix:") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _check_http_address(value: str) -> str:
    if value and not _is_host_and_port(value):
        raise ValueError("Input should be HOST:PORT, such as 127.0.0.1:9100, 0.0.0.0:0 or [::]:9100")
    return value


def _check_address(value: str) -> str:
    if not (value.startswith("unix:") or _is_host_and_port(value)):
        raise ValueError("Input should be HOST:PORT, such as 127.0.0.1:50051, 0.0.0.0:0 or [::]:50051, or unix:PATH")
    return value


def _drop_empty(value: object) -> object:
    return value or None


def _split_paths(value: object) -> object:
    return [path for path in value.split(os.pathsep) if path] if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(_check_address)]
OptionalAddress = Annotated[str, AfterValidator(lambda value: value and _check_address(value))]
HttpAddress = Annotated[str, AfterValidator(_check_http_address)]
OptionalFile = Annotated[Path | None, BeforeValidator(_drop_empty)]
Paths = Annotated[list[Path], NoDecode, BeforeValidator(_split_paths)]
"""Written as one string, as in PATH: with colons between them."""


class InvalidSettings(Exception):
    """A setting that cannot be used: says which, what was found and what is allowed."""


class ServerSettings(BaseSettings):
    """Everything that `twinfer serve` can be told, besides the folder."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    listen: Address = "127.0.0.1:50051"
    """Where callers connect: HOST:PORT, or unix:PATH; port 0 picks a free one."""
    admin_listen: OptionalAddress = ""
    """Where operators connect: HOST:PORT; empty means nowhere."""
    metrics_listen: HttpAddress = ""
    """Where Prometheus reads metrics over HTTP, or HTTPS with `tls_cert`: HOST:PORT; empty means nowhere."""
    health_listen: OptionalAddress = ""
    """Where probes ask for health, and for nothing else, always in the clear: HOST:PORT; empty means nowhere."""
    tls_cert: OptionalFile = None
    """The listeners' certificate and those of its issuers, in PEM; read again when it changes. None means plain text."""
    tls_key: OptionalFile = None
    """The certificate's private key, in PEM, without a passphrase."""
    tls_client_ca: OptionalFile = None
    """The authorities, in PEM, of which one must have issued a client's certificate; None means that clients need none."""
    auth_file: Path | None = None
    """The callers that are let in, with their roles and tokens; without it any caller is."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    trust_code: bool = False
    """Let any program among the models run."""
    trust_list: Paths = []
    """Files with the sha256 digests of the programs that may run."""

    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 32 * 2**20
    """The largest message that a caller may send, in bytes, unpacked if it comes compressed."""
    max_concurrent_calls: Count = 320
    """Calls of every kind but health at once, RPC streams included.

    Times `max_message_bytes`, about the most that lies in memory before admission. Above `max_in_flight_requests`, for RPC streams
    that send nothing hold places, too."""
    max_stream_requests: Count = 64
    """Requests that one InferStream may have in flight; further ones are read when a response has gone out."""
    max_in_flight_requests: Count = 256
    """Requests at once that are decoded, wait or are computed; the last eighth of the places is kept for those that come alone."""
    max_batch_requests: Count = 128
    """Requests that one BatchInfer may carry; no more than `max_in_flight_requests`, whatever this says."""
    max_in_flight_bytes: Count = 256 * 2**20
    """Bytes of the requests in flight, over all calls."""
    max_image_pixels: Count = 50_000_000
    """The largest image that a caller may send, in pixels once it is decoded."""
    max_text_bytes: Count = 65_536
    """The longest text that a caller may send, in bytes of UTF-8."""
    default_timeout_seconds: Seconds = 30.0
    """The time a request may take where the caller sets none; also the most that a caller can set."""
    reply_slack_seconds: Seconds = 0.02
    """How long before its deadline a request is answered; more where replies take longer, at most a quarter of its time."""
    stuck_seconds: Seconds = 10.0
    """How long a member's stream may stand still before health turns NOT_SERVING."""
    breaker_window: Count = 20
    """The batches of a member that its circuit breaker looks back upon."""
    breaker_failures: Annotated[int, Field(ge=0)] = 10
    """How many failures among them open the breaker, at most as many as it looks back upon; 0 means that failures never do."""
    breaker_stall_seconds: Seconds = 2.0
    """How long a member's stream may be behind its time before the breaker opens."""
    breaker_retry_seconds: Seconds = 5.0
    """How long a breaker stays open before the member is tried again; twice as long after each failed trial, at most a minute."""
    drain_seconds: Seconds = 20.0
    """How long the requests in flight may take once the server is told to stop."""
    decode_threads: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and tokenize; 0 means one per core."""
    memory_budget_mb: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """The device memory that the members may take, in megabytes (10^6 bytes); 0 means no limit. The folder may set a lower one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged: this and all that is graver."""
    log_json: bool = False
    """Write the log as JSON lines."""

    @property
    def batch_requests(self) -> int:
        """The most requests that one BatchInfer may carry."""
        return min(self.max_batch_requests, self.max_in_flight_requests)

    @field_validator("auth_file")
    @classmethod
    def _keeps_tokens_secret(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        for name in ("listen", "admin_listen"):
            address = info.data.get(name, "")
            if path is not None and address and not is_local(address) and info.data.get("tls_cert") is None:
                allowed = f"empty where {name} is {address} without TLS, which tokens could be read from: set tls_cert and tls_key"
                raise ValueError(f"Input should be {allowed}, or let {name} be a loopback address or unix:PATH")
        return path

    @field_validator("breaker_failures")
    @classmethod
    def _can_be_reached(cls, failures: int, info: ValidationInfo) -> int:
        window = info.data.get("breaker_window", failures)
        if failures > window:
            raise ValueError(f"Input should be at most breaker_window, which is {window}")
        return failures


def traces_are_wanted() -> bool:
    """Return whether OpenTelemetry's own variables ask for traces: they name an exporter, or where spans go."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter != "none" if exporter else any(os.environ.get(name, "").strip() for name in endpoints)


def read_settings(**flags: Any) -> ServerSettings:
    """Read the settings from `flags` (None: not given) and the environment; raises InvalidSettings."""
    known = {f"{PREFIX}{name.upper()}" for name in ServerSettings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known | CLIENT_VARIABLES)
    if unknown:
        raise InvalidSettings(f"environment: found {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
    try:
        return ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [(".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "), fault["input"]) for fault in faults]
        raise InvalidSettings("\n".join(f"{name}: {text}; found {quote(found)}" for name, text, found in lines)) from None
