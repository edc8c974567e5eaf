"""Fetches an issuer's keys over the network.

Responses are limited in size and time. Redirects are refused, as they could lead to a URL that is not configured. The
issuer's certificate is verified with the system's authorities, or with those of `ca_file` alone.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

from router.auth.issuers import Issuer
from router.auth.jwks import InvalidIssuerResponse, parse_jwks_uri, parse_key_set, parse_max_age
from router.auth.trust import PublicKey
from router.config.regular_file import read_regular_file

FETCH_TIMEOUT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 1_048_576
_MAX_HEADER_BYTES = 16_384


class FetchError(Exception):
    """The keys could not be fetched; `str()` is the reason, in one line."""


async def fetch_keys(issuer: Issuer) -> tuple[tuple[PublicKey, ...], float]:
    """Return an issuer's keys, and for how many seconds they may be used. Raises `FetchError`."""
    url = issuer.jwks_url or issuer.discovery_url
    try:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(_tls_context, issuer.ca_file), limit=1)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=_MAX_HEADER_BYTES,
            headers={"Accept": "application/json", "User-Agent": "azureml-fe"},
        ) as session:
            if issuer.jwks_url is None:
                content, _ = await _get(session, url)
                url = parse_jwks_uri(content, issuer.issuer)
            content, cache_control = await _get(session, url)
            return parse_key_set(content), parse_max_age(cache_control)
    except TimeoutError:
        raise FetchError(f"{url}: no response within {FETCH_TIMEOUT_SECONDS:g} s") from None
    except InvalidIssuerResponse as error:
        raise FetchError(f"{url}: {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(f"{url}: {error or type(error).__name__}") from None


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[bytes, str]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise InvalidIssuerResponse(f"responded with status {response.status}, 200 is needed")
        content = b""
        async for piece in response.content.iter_any():
            content += piece
            if len(content) > MAX_RESPONSE_BYTES:
                raise InvalidIssuerResponse(f"the response is larger than {MAX_RESPONSE_BYTES} bytes")
        return content, response.headers.get("Cache-Control", "")


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the context that verifies the issuer. Raises OSError for a bundle that cannot be used."""
    if ca_file is not None:
        read_regular_file(ca_file, 0)  # OpenSSL would wait for the writer of a named pipe
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
