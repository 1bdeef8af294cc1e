"""Where webhooks may be sent: what an address resolves to, and which networks are closed to it.

A user names the address and the service makes the request, so without this a user could reach what only the service
can: the database beside it, a cloud's metadata, the office's printers.
"""

import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from app.errors import InvalidRequest
from app.settings import get_settings

IP = IPv4Address | IPv6Address
Lookup = Callable[[str, int], list[str]]
"""A name and a port to all addresses of the name."""
PATIENCE = 8.0
"""Seconds that a name may take to resolve; by default the resolver goes on to its second server after 5."""

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)

# What the versions of `ipaddress` do not agree on, or take for public.
_SPECIAL: tuple[tuple[IPv4Network | IPv6Network, str], ...] = (
    (ip_network("100.64.0.0/10"), "a carrier's inner address"),
    (ip_network("192.0.0.0/24"), "a reserved address"),
    (ip_network("192.88.99.0/24"), "a relay to IPv6"),
    # Public by its number, but every virtual machine of Azure reaches its host by it:
    # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    (ip_network("168.63.129.16/32"), "the inner address of Azure's hosts"),
    (ip_network("::ffff:0:0/96"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("::ffff:0:0:0/96"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("::/96"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("64:ff9b::/96"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("64:ff9b:1::/48"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("2002::/16"), "an IPv4 address in the clothes of IPv6"),
    (ip_network("2001::/23"), "a reserved address"),
    (ip_network("2001:db8::/32"), "a reserved address"),
    (ip_network("3fff::/20"), "a reserved address"),
    (ip_network("5f00::/16"), "a reserved address"),
    (ip_network("100::/64"), "a reserved address"),
    (ip_network("fec0::/10"), "a private address"),
)


class AddressRefused(InvalidRequest):
    """The service does not send to this address."""

    code = "address_not_allowed"
    param = "url"


@dataclass(frozen=True, slots=True)
class Target:
    """An address, and the IP addresses that were found allowed for it: a connection goes to these and to no other."""

    url: httpx.URL
    addresses: tuple[IP, ...]

    @property
    def port(self) -> int:
        """The one in the address, or its scheme's."""
        return self.url.port or _default_port(self.url)


def lookup(host: str, port: int) -> list[str]:
    """Ask the system's resolver, which may take half a minute and cannot be told to stop: a thread waits it out."""
    answer: Future[list[str]] = Future()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.set_result([str(address[0]) for *_, address in found])
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name=f"look-up of {host}", daemon=True).start()
    return answer.result(PATIENCE)


def resolve(address: str, ask: Lookup = lookup) -> Target:
    """Resolve once, and check everything found. Raises `AddressRefused`; may wait some seconds for a name server."""
    url = _parse(address)
    host = url.raw_host.decode("ascii").removesuffix(".")
    found = _addresses(host, url.port or _default_port(url), ask)
    for ip in found:
        _require_allowed(ip, host)
    return Target(url, tuple(found))


def _parse(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise AddressRefused("This is not an address such as https://example.com/hook.") from error
    if url.scheme not in ("http", "https"):
        raise AddressRefused("The address must begin with https:// or http://.")
    if url.userinfo or "@" in url.netloc.decode("ascii", errors="replace"):
        raise AddressRefused("The address must not have a user or a password in it; the signature says who sends.")
    if not url.raw_host or (url.port is not None and not 0 < url.port < 2**16):
        raise AddressRefused("The address must name a host, and a port between 1 and 65535 if any.")
    return url


def _default_port(url: httpx.URL) -> int:
    return 443 if url.scheme == "https" else 80


def _addresses(host: str, port: int, ask: Lookup) -> list[IP]:
    if "%" in host:
        raise AddressRefused("The address must not name a network interface, nor hide letters behind percent signs.")
    with suppress(ValueError):
        return [ip_address(host)]
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Resolvers take 2130706433, 0x7f.1 and 0177.0.0.1 for 127.0.0.1, and not all of them alike.
        raise AddressRefused(f"The address {host} must be written as four decimal numbers.")
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise AddressRefused("The address does not name a host.")
    try:
        found = [ip_address(text) for text in dict.fromkeys(ask(host, port))]
    except (OSError, UnicodeError) as error:
        raise AddressRefused(f"The name {host} does not resolve just now.") from error
    if not found:
        raise AddressRefused(f"The name {host} has no address.")
    return found


def _require_allowed(ip: IP, host: str) -> None:
    if any(ip in network for network in get_settings().webhook_allow):
        return
    kind = _closed(ip)
    if kind is not None:
        named = f"{ip}, {kind}," if ":" in host or host == str(ip) else f"{ip}, {kind} that {host} resolves to,"
        raise AddressRefused(
            f"Webhooks are not sent to {named} unless the server's operator allows its network in"
            " FINETUNED_WEBHOOK_ALLOW."
        )


def _closed(ip: IP) -> str | None:
    """What kind of address it is, if it is not one of the public internet."""
    for network, kind in _SPECIAL:
        if ip in network and ip not in (IPv6Address("::"), IPv6Address("::1")):
            return kind
    for is_such, kind in (
        (ip.is_unspecified, "the unspecified address"),
        (ip.is_loopback, "a loopback address"),
        (ip.is_link_local, "a link-local address"),
        (ip.is_multicast, "a multicast address"),
        (ip.is_reserved, "a reserved address"),
        (ip.is_private or not ip.is_global, "a private address"),
    ):
        if is_such:
            return kind
    return None
