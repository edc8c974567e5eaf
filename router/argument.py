"""Types of arguments on the command line: text to value. What is not allowed raises `argparse.ArgumentTypeError`, which
says what is."""

import argparse
import math
import re


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _number(text: str, allowed: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {allowed}")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, "a number above 0, at most 1000000", 0, 1e6)


def percent(text: str) -> float:
    """A percentage above 0."""
    return _number(text, "a percentage above 0, at most 100", 0, 100)


def count(text: str) -> int:
    """A whole number from 1."""
    value = _number(text, "a whole number from 1 to 100000", 0, 1e5)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a whole number from 1 to 100000")
    return int(value)


def url(text: str) -> str:
    """The address of an HTTP server; `http://` may be left out."""
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: http://HOST:PORT")
    return url
