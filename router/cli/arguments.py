"""Parsers of command-line arguments. Each returns a value, or raises `argparse.ArgumentTypeError` with the rule that
the text breaks."""

import argparse
import math
import re


def address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`, with an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _number(text: str, allowed: str, above: float, maximum: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value <= maximum:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {allowed}")
    return value


def positive(text: str) -> float:
    """Parse a number above 0."""
    return _number(text, "a number above 0, at most 1000000", 0, 1e6)


def percent(text: str) -> float:
    """Parse a percentage above 0."""
    return _number(text, "a percentage above 0, at most 100", 0, 100)


def count(text: str) -> int:
    """Parse a whole number above 0."""
    value = _number(text, "a whole number from 1 to 100000", 0, 1e5)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a whole number from 1 to 100000")
    return int(value)


def url(text: str) -> str:
    """Parse the URL of an HTTP server; `http://` is optional."""
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s]*)?", url):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: http://HOST:PORT")
    return url
