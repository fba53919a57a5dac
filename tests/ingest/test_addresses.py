"""Which URLs are mended to what, and which addresses may be connected to."""

from __future__ import annotations

import ipaddress

import pytest

from ingest.fetch.addresses import MAX_URL, AddressRule, BadUrlError, mend
from shards import UserError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://a.b/c.jpg", "http://a.b/c.jpg"),
        ("  https://a.b/c.jpg\n", "https://a.b/c.jpg"),
        ("//a.b/c.jpg", "http://a.b/c.jpg"),
        ("HTTPS://A.B/C.jpg", "https://a.b/C.jpg"),
        ("http://a.b", "http://a.b/"),
        ("http://a.b?x=1", "http://a.b/?x=1"),
        ("http://a.b/c d.jpg?e f", "http://a.b/c%20d.jpg?e%20f"),
        ("http://a.b/é/日.jpg?ü", "http://a.b/%C3%A9/%E6%97%A5.jpg?%C3%BC"),
        ("http://a.b/c%20d%C3%A9.jpg", "http://a.b/c%20d%C3%A9.jpg"),
        ("http://a.b/100%.jpg", "http://a.b/100%25.jpg"),
        ("http://a.b/c.jpg#part", "http://a.b/c.jpg"),
        ('http://a.b/"<x>`{y}', "http://a.b/%22%3Cx%3E%60%7By%7D"),
        ("http://a.b/x[1](2)|3^4~5;6,7'8!9*0@+$&=:", "http://a.b/x[1](2)|3^4~5;6,7'8!9*0@+$&=:"),
        ("http://a.b\\c\\d.jpg?e\\f", "http://a.b/c/d.jpg?e\\f"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://faß.example/x", "http://xn--fa-hia.example/x"),
        ("http://a_b.c:8080/x", "http://a_b.c:8080/x"),
        ("http://a.b:/x", "http://a.b/x"),
        ("http://u:p w@a.b/x", "http://u:p%20w@a.b/x"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://ex%61mple.com/x", "http://example.com/x"),
    ],
)
def test_a_url_becomes_what_was_meant(written: str, meant: str) -> None:
    assert mend(written).url == meant
    # What is whole already stays as it is.
    assert mend(meant).url == meant


@pytest.mark.parametrize(
    ("url", "host", "origin"),
    [
        ("http://A.b:8080/x", "a.b", "http://a.b:8080"),
        ("https://u:p@a.b/x", "a.b", "https://a.b"),
        ("http://a.b./x", "a.b", "http://a.b."),
        ("http://good.example@127.0.0.1/", "127.0.0.1", "http://127.0.0.1"),
        ("http://good.example\\@127.0.0.1/", "good.example", "http://good.example"),
        ("http://a@b@c/", "c", "http://c"),
        ("http://a.b/@c.d/", "a.b", "http://a.b"),
        ("http://a.b?@c.d/", "a.b", "http://a.b"),
        ("http://[::FFFF:1]:9/x", "[::ffff:1]", "http://[::ffff:1]:9"),
        ("http://１２７.0.0.1/", "127.0.0.1", "http://127.0.0.1"),
    ],
)
def test_host_and_origin(url: str, host: str, origin: str) -> None:
    assert (mend(url).host, mend(url).origin) == (host, origin)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not a URL"),
        ("a.b/c.jpg", "not a URL"),
        ("/c.jpg", "not a URL"),
        ("file:///etc/passwd", "not a URL"),
        ("ftp://a.b/c", "not a URL"),
        ("data:image/png;base64,AAAA", "not a URL"),
        ("javascript:alert(1)", "not a URL"),
        ("http:/a.b/c", "not a URL"),
        ("http:///c", "no host"),
        ("http://:80/c", "no host"),
        ("http://u@/c", "no host"),
        ("http://a b/c", "not a name"),
        ("http://a%00b/c", "not a name"),
        ("http://[::1/c", "not a name"),
        ("http://[fe80::1%25eth0]/c", "not a name"),
        ("http://" + "a" * 256 + "/c", "not a name"),
        ("http://\u2028/c", "not a name"),
        ("http://a.b:99999/c", "port"),
        ("http://a.b:0/c", "port"),
        ("http://a.b:8x/c", "port"),
        ("http://a.b:٣/c", "port"),
        ("http://a.b/c\nd", "control"),
        ("http://a.b/c\r\nHost: evil", "control"),
        ("http://a.b/\x00", "control"),
        ("http://a.b/\ud800", "not text"),
        ("http://a.b/" + "c" * MAX_URL, "too long"),
    ],
)
def test_what_cannot_be_fetched_is_said_so(url: str, why: str) -> None:
    with pytest.raises(BadUrlError, match=why):
        mend(url)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
        *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
        *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::7f00:1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1"),
        *("2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "4000::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fec0::1", "ff02::1"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not AddressRule().permits(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"),
        *("169.253.255.255", "172.15.255.255", "172.32.0.0", "192.167.255.255", "198.17.255.255", "223.255.255.255"),
        *("2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"),
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressRule().permits(address)


def test_nothing_is_permitted_that_python_knows_as_private() -> None:
    """Every /16's first and last address, against Python's list of what is not global."""
    rule = AddressRule()
    for number in range(2**16):
        for last in (0, 0xFFFF):
            address = ipaddress.IPv4Address(number << 16 | last)
            if not address.is_global or address.is_multicast or address.is_reserved:
                assert not rule.permits(str(address)), address


def test_an_allow_list_allows_the_very_addresses() -> None:
    rule = AddressRule(("127.0.0.1", "10.1.0.0/16", "::1"))
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "::1", "8.8.8.8"):
        assert rule.permits(address)
    for address in ("127.0.0.2", "10.2.0.0", "::2", "169.254.169.254", "64:ff9b::a9fe:a9fe"):
        assert not rule.permits(address)


@pytest.mark.parametrize("text", ["localhost", "127.0.0.300", "10.0.0.1/8", "", "10.0.0.0/99"])
def test_an_allow_list_of_something_else_is_the_users_error(text: str) -> None:
    with pytest.raises(UserError, match="allowed address") as caught:
        AddressRule((text,))
    assert repr(text) in str(caught.value)
