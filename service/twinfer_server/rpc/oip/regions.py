"""Regions: parts of POSIX shared memory on this machine, through which clients hand over tensors and take answers.

They are read and written as files, not mapped: whoever shrinks a mapped object after it has been registered would kill the process
that looks at it, and whoever writes to it would change what has been checked already.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ...errors import InvalidInput, InvalidOption, Unsupported, quote
from .parameters import Parameters, read_text, read_whole

REGION, BYTE_SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
PARAMETERS = (REGION, BYTE_SIZE, OFFSET)

MAX_REGIONS = 256
"""Each holds a file open."""
MAX_NAME_CHARS = 256

SHARED_MEMORY = Path("/dev/shm")


class SharedObject:
    """An open shared memory object; it is closed when nobody holds it any more, be it a registration or a request under way."""

    def __init__(self, key: str) -> None:
        """Open it; raises InvalidOption where there is no such object."""
        name = key.removeprefix("/")
        allowed = "the name of a shared memory object of this machine that the server may open"
        if (
            not 1 <= len(name.encode(errors="replace")) < MAX_NAME_CHARS
            or name in (".", "..")
            or "/" in name
            or not name.isprintable()
        ):
            raise InvalidOption(f"key: found {quote(key)}; allowed: {allowed}")
        try:
            # What is no object of shared memory must neither hold us up nor lead elsewhere.
            self.file = os.open(SHARED_MEMORY / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise InvalidOption(f"key: found {quote(key)} ({error.__class__.__name__}); allowed: {allowed}") from None

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    @property
    def size_bytes(self) -> int:
        """How large it is now; -1 if it is no plain file."""
        found = os.fstat(self.file)
        return found.st_size if stat.S_ISREG(found.st_mode) else -1


@dataclass(frozen=True, slots=True)
class Region:
    """A registered region: bytes `offset` to `offset + byte_size` of the object `key`."""

    name: str
    key: str
    offset: int
    byte_size: int
    opened: SharedObject


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of a region; `field` says of what, in errors."""

    field: str
    region: Region
    offset: int
    byte_size: int

    def read(self) -> bytes:
        """Read the bytes, a copy; raises InvalidInput where the object has shrunk. Any thread."""
        try:
            data = os.pread(self.region.opened.file, self.byte_size, self.region.offset + self.offset)
        except OSError as error:
            raise InvalidInput(f"{self.field}: region {self.region.name!r} cannot be read ({error.strerror})") from None
        if len(data) != self.byte_size:
            raise InvalidInput(f"{self.field}: found {len(data)} bytes in the shared memory object; allowed: {self.byte_size}")
        return data

    def write(self, data: bytes) -> None:
        """Write the bytes of an output; raises InvalidOption where they are more than the place has, or the object has shrunk."""
        if len(data) > self.byte_size:
            raise InvalidOption(f"{self.field}: found room for {self.byte_size} bytes; allowed: at least {len(data)}")
        begin = self.region.offset + self.offset
        if self.region.opened.size_bytes < begin + len(data):  # writing would make it larger again
            raise InvalidOption(f"{self.field}: the shared memory object has shrunk; allowed: the size that was registered")
        try:
            os.pwrite(self.region.opened.file, data, begin)
        except OSError as error:
            raise InvalidOption(f"{self.field}: region {self.region.name!r} cannot be written ({error.strerror})") from None


class Regions:
    """The registered regions by name. Event loop only."""

    def __init__(self, is_enabled: bool) -> None:
        """Begin with none; unless they are enabled it stays so."""
        self.is_enabled = is_enabled
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region; raises InvalidOption, or Unsupported where regions are not enabled."""
        if not self.is_enabled:
            raise Unsupported("shared memory is off; allowed: where the operator has set shared_memory to true")
        if not 1 <= len(name) <= MAX_NAME_CHARS or name in self._regions:
            raise InvalidOption(f"name: found {quote(name)}; allowed: 1 to {MAX_NAME_CHARS} characters, not registered yet")
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidOption(f"name: found {MAX_REGIONS} regions registered already; allowed: at most {MAX_REGIONS}")
        opened = SharedObject(key)
        if not byte_size or offset + byte_size > opened.size_bytes:
            found, allowed = f"{byte_size} bytes at offset {offset}", f"at least 1, within the object's {opened.size_bytes}"
            raise InvalidOption(f"byte_size: found {found}; allowed: {allowed}")
        self._regions[name] = Region(name, key, offset, byte_size, opened)

    def unregister(self, name: str) -> None:
        """Forget a region, or all where the name is empty; what is not there is forgotten already."""
        for known in [name] if name else list(self._regions):
            self._regions.pop(known, None)

    def list(self, name: str) -> list[Region]:
        """List the regions, or the one of that name; raises InvalidOption where it is not there."""
        return [self._find("name", name)] if name else [*self._regions.values()]

    def find_place(self, field: str, parameters: Parameters) -> Place | None:
        """Read where a tensor lies in shared memory, None if it does not; raises InvalidOption where it leaves its region."""
        if not any(name in parameters for name in PARAMETERS):
            return None
        region = self._find(f"{field}.parameters[{REGION!r}]", read_text(f"{field}.parameters", parameters, REGION))
        byte_size = read_whole(f"{field}.parameters", parameters, BYTE_SIZE)
        offset = read_whole(f"{field}.parameters", parameters, OFFSET) or 0
        if byte_size is None or offset + byte_size > region.byte_size:
            found = f"{byte_size} bytes at offset {offset}"
            raise InvalidOption(f"{field}.parameters: found {found}; allowed: within the region's {region.byte_size}")
        return Place(field, region, offset, byte_size)

    def _find(self, field: str, name: str) -> Region:
        if name not in self._regions:
            raise InvalidOption(
                f"{field}: found {quote(name)}; allowed: a registered region, of which there are {len(self._regions)}"
            )
        return self._regions[name]
