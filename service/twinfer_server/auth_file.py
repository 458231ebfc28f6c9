"""The callers that the operator lets in: names, roles, tokens and limits, read from `auth_file`, and again when it changes.

    [callers.web]
    role = "infer"
    token = "sha256:..."            # what `twinfer token new web --role infer` prints; a list of them while one replaces another
    requests_per_second = 100

    [callers.edge]
    role = "operate"
    certificate = "edge.example"    # the common name in the subject of a client certificate, as etcd has it

The file holds no secret: of a token of 256 random bits its SHA-256 gives nothing away, and no guess is ever right. A slow hash
(bcrypt, Argon2) makes up for passwords that people choose, and would cost every call what it costs a guesser.
"""

import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from .errors import outline
from .settings import InvalidSettings, ServerSettings
from .spec import describe_faults, read_file
from .types import ANONYMOUS, CallerLimits

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Role(StrEnum):
    """What a caller may do: ask for answers, change what they are made of, or look. `rpc/security.py` says which RPCs that is."""

    INFER = "infer"
    OPERATE = "operate"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller that has proved its name."""

    name: str
    role: Role


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name) or name == ANONYMOUS:
        raise ValueError(
            f"Input should be 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit, not {ANONYMOUS!r}"
        )
    return name


Count = Annotated[int, Field(ge=1)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Annotated[Role, Field(strict=False)]
    token: Annotated[list[Digest], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = []
    certificate: Annotated[str, Field(min_length=1)] | None = None
    requests_per_second: Annotated[FiniteFloat, Field(gt=0)] | None = None
    requests_in_flight: Count | None = None
    bytes_in_flight: Count | None = None


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    callers: Annotated[dict[Annotated[str, AfterValidator(_check_name)], _Entry], Field(min_length=1)]


class Callers:
    """The callers of a file, by what they prove their names with."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        """Take the entries by name; raises ValueError for what two have, or for one that could prove nothing."""
        self._by_digest: dict[bytes, tuple[bytes, Caller]] = {}
        self._by_certificate: dict[str, Caller] = {}
        self.limits: Mapping[str, CallerLimits] = {
            name: CallerLimits(entry.requests_per_second, entry.requests_in_flight, entry.bytes_in_flight)
            for name, entry in entries.items()
        }
        """By name."""
        for name, entry in entries.items():
            caller = Caller(name, entry.role)
            if not entry.token and entry.certificate is None:
                raise ValueError(f"callers.{name}: found neither a token nor a certificate; allowed: one of them, or both")
            for text in entry.token:
                digest = bytes.fromhex(text.removeprefix("sha256:"))
                if self._by_digest.setdefault(digest, (digest, caller))[1] is not caller:
                    raise ValueError(f"callers.{name}.token: found that of another caller; allowed: one of its own")
            if entry.certificate is not None and self._by_certificate.setdefault(entry.certificate, caller) is not caller:
                raise ValueError(f"callers.{name}.certificate: found that of another caller; allowed: one of its own")

    @property
    def has_certificates(self) -> bool:
        """Whether some prove their names with client certificates."""
        return bool(self._by_certificate)

    def find_by_token(self, token: str) -> Caller | None:
        """Return whose token it is; None for nobody's.

        How long that takes helps no guesser: what is compared are digests, and whoever knew all of one but its last bit could make
        no token of it. A dict compares only digests whose SipHash, under a key that each process draws, is equal in all its bits.
        """
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        known, caller = self._by_digest.get(digest, (bytes(len(digest)), None))
        return caller if hmac.compare_digest(known, digest) else None

    def find_by_certificate(self, common_name: str) -> Caller | None:
        """Return whose certificate has that common name in its subject; the certificate has been verified."""
        return self._by_certificate.get(common_name)


class AuthFile:
    """The file, and the callers that it named when it was last right."""

    def __init__(self, path: Path, settings: ServerSettings) -> None:
        """Read it; raises InvalidSettings."""
        self._path = path
        self._asks_for_certificates = settings.tls_client_ca is not None
        content = self._load()
        self.callers = self._parse(content)
        self._content: bytes | None = content
        """As it was at the last look; None where it could not be read."""

    def look(self) -> bool:
        """Read the file again, and return whether its callers are others now; not for the event loop.

        A file that is broken, or gone, changes nothing, and the log says so once.
        """
        before, self._content = self._content, None
        try:
            self._content = self._load()
            if self._content == before:
                return False
            self.callers = self._parse(self._content)
        except InvalidSettings as error:
            if self._content != before:
                logger.error("%s; the callers are those of before", error)
            return False
        logger.info("%s: read again, %d callers", self._path, len(self.callers.limits))
        return True

    def _load(self) -> bytes:
        try:
            return read_file(self._path)
        except OSError as error:
            raise InvalidSettings(f"auth_file: {self._path} cannot be read: {error.strerror}") from None

    def _parse(self, content: bytes) -> Callers:
        where = f"auth_file: {self._path}"
        try:
            document = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as error:  # tomllib nests until Python stops it
            raise InvalidSettings(f"{where}: not TOML: {outline(error)}") from None
        try:
            callers = Callers(_Document.model_validate(document).callers)
        except ValidationError as error:
            raise InvalidSettings("\n".join(f"{where}: {line}" for line in describe_faults(error))) from None
        except ValueError as error:
            raise InvalidSettings(f"{where}: {error}") from None
        if callers.has_certificates and not self._asks_for_certificates:
            raise InvalidSettings(f"{where}: found a certificate; allowed: none unless tls_client_ca is set, which asks for them")
        return callers
