"""Which addresses webhooks may be sent to: a table of what attackers write."""

import socket
import threading
import time

import pytest

from app.settings import Settings
from app.webhooks import addresses
from app.webhooks.addresses import AddressRefused, resolve
from tests.conftest import SetSettings

PUBLIC = "93.184.215.14"


def nobody(host: str, port: int) -> list[str]:
    raise AssertionError(f"{host} was looked up")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.64.0.1",
        "100.127.255.255",
        "0.0.0.0",  # noqa: S104  an address of the table
        "0.1.2.3",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[::ffff:0:10.0.0.1]",
        "[::ffff:93.184.215.14]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[100::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[fe80::1%25eth0]",
        "127.0.0.1.",
        "127。0。0。1",
    ],
)
def test_an_address_that_is_not_of_the_public_internet_is_refused(host: str) -> None:
    for url in (f"http://{host}/", f"https://{host}:8443/hook"):
        with pytest.raises(AddressRefused) as refused:
            resolve(url, nobody)
        assert refused.value.param == "url"


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0", "017700000001", "0177.0.0.1", "1.1", "1.2.3.4.5", "0x"]
)
def test_a_number_in_another_notation_is_refused_even_where_its_network_is_allowed(
    host: str, set_settings: SetSettings
) -> None:
    set_settings(webhook_allow="0.0.0.0/0, ::/0")
    with pytest.raises(AddressRefused):
        resolve(f"http://{host}/", nobody)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "example.com/hook",
        "//example.com/",
        "http://",
        "http:///hook",
        "http://:80/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:x/",
        "http://user:password@example.com/",
        "http://user@example.com/",
        "http://example.com@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://exa mple.com/",
        "http://a..b/",
        "http://-/",
        "http://[::1/",
        f"http://{'a' * 300}.example.com/",
        "http://example.com\r\nx-header: 1/",
    ],
)
def test_what_is_no_plain_http_address_is_refused(url: str, set_settings: SetSettings) -> None:
    set_settings(webhook_allow="0.0.0.0/0, ::/0")
    with pytest.raises(AddressRefused):
        resolve(url, nobody)


def test_a_name_is_refused_if_any_of_its_addresses_is() -> None:
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.7, a private address that two\.example resolves to"):
        resolve("https://two.example/", lambda _host, _port: [PUBLIC, "10.0.0.7"])


def test_a_name_is_resolved_once_and_keeps_what_was_checked() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]
    target = resolve("https://rebinding.example/", lambda _host, _port: answers.pop(0))
    assert [str(ip) for ip in target.addresses] == [PUBLIC]
    assert len(answers) == 1


def test_localhost_is_refused_by_name() -> None:
    with pytest.raises(AddressRefused, match=r"a loopback address that localhost resolves to.*FINETUNED_WEBHOOK_ALLOW"):
        resolve("http://localhost:8000/")


def test_a_name_that_does_not_resolve_is_refused() -> None:
    with pytest.raises(AddressRefused, match="does not resolve"):
        resolve("https://nobody.invalid/")


def test_a_name_that_takes_long_to_resolve_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(10) and [])
    monkeypatch.setattr(addresses, "PATIENCE", 0.2)
    begun = time.monotonic()
    with pytest.raises(AddressRefused, match=r"slow\.example does not resolve just now"):
        resolve("https://slow.example/")
    assert time.monotonic() - begun < 5
    end.set()


@pytest.mark.parametrize(
    ("url", "port"),
    [
        (f"http://{PUBLIC}/", 80),
        (f"https://{PUBLIC}:8443/hook?a=b", 8443),
        ("https://[2606:4700:4700::1111]/", 443),
        ("https://hooks.example.com/x", 443),
        ("https://Bücher.example/", 443),
        ("https://a_b.example./", 443),
    ],
)
def test_public_addresses_are_allowed(url: str, port: int) -> None:
    target = resolve(url, lambda _host, _port: [PUBLIC, "2606:4700:4700::1111"])
    assert (target.port, len(target.addresses) > 0) == (port, True)


def test_the_operator_can_allow_networks(set_settings: SetSettings) -> None:
    set_settings(webhook_allow="127.0.0.0/8, fd00::/8,")
    assert resolve("http://127.0.0.9/", nobody)
    assert resolve("http://[fd00::1]/", nobody)
    for still in ("http://10.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/"):
        with pytest.raises(AddressRefused):
            resolve(still, nobody)


def test_an_allowance_that_is_no_network_stops_the_start(set_settings: SetSettings) -> None:
    set_settings(webhook_allow="localhost")
    with pytest.raises(ValueError, match="webhook_allow"):
        Settings()
