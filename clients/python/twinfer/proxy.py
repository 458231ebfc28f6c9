"""HTTP proxies, which gRPC takes from the environment: never for this machine's own servers, and named where a call fails."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import unquote, urlsplit

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Of these gRPC takes the first that is set, even to nothing."""
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_local(target: str) -> bool:
    """Whether a target is a Unix socket, or nothing but addresses of this machine itself, to which no proxy has a way."""
    return target.startswith(("unix:", "unix-abstract:")) or all(map(_is_own, _hosts(target)))


def find_proxy(target: str) -> str:
    """Return which variable sends a target's calls through which proxy, without credentials; empty where none does."""
    variable = next((name for name in VARIABLES if name in os.environ), "")
    left_out = next((os.environ[name] for name in EXCEPTIONS if name in os.environ), "")
    with suppress(ValueError):
        proxy = urlsplit(os.environ.get(variable, ""))
        is_used = proxy.scheme == "http" and proxy.hostname and not is_local(target)
        if is_used and not any(_is_within(host, entry.strip()) for host in _hosts(target) for entry in left_out.split(",")):
            return f"{variable} ({proxy.hostname}:{proxy.port or 80})"
    return ""


def _hosts(target: str) -> Iterator[str]:
    """Yield the hosts of HOST:PORT, dns:[//SERVER/]HOST:PORT, ipv4:ADDRESS:PORT,... or ipv6:[ADDRESS]:PORT,..."""
    scheme, _, rest = target.partition(":")
    for each in unquote(rest.rpartition("/")[2] if scheme in ("dns", "ipv4", "ipv6") else target).split(","):
        host = each.rpartition(":")[0] if each.count(":") == 1 or (each.startswith("[") and not each.endswith("]")) else each
        yield host.strip("[]").rstrip(".").lower()


def _is_own(host: str) -> bool:
    address = _read_address(host)
    if address is None:
        return host in ("localhost", "ip6-localhost", "ip6-loopback") or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _read_address(host: str) -> Address | None:
    """Read an address in any form that systems take, 127.1 included; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None
    mapped: ipaddress.IPv4Address | None = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _is_within(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy, the end of a name or a network, leaves a host out."""
    address = _read_address(host)
    with suppress(ValueError):
        if address is not None and address in ipaddress.ip_network(entry, strict=False):
            return True
    return bool(entry) and host.endswith(entry.lower())
