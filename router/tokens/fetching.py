"""Fetching an issuer's keys over the network.

An answer is bounded in size and time; a redirect is refused, as it could lead to an address that nobody has configured;
the issuer's certificate is checked against the system's authorities, or those of `ca_file` alone.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

from router.auth.issuers import Issuer
from router.auth.jwks import BadAnswer, max_age, read_keys, read_keys_url
from router.auth.trust import PublicKey

LONGEST_FETCH_SECONDS = 10.0
LARGEST_ANSWER_BYTES = 1_048_576
_LARGEST_HEADER_BYTES = 16_384


class FetchError(Exception):
    """The keys could not be fetched; `str()` is one line that says why."""


async def fetch_keys(issuer: Issuer) -> tuple[tuple[PublicKey, ...], float]:
    """An issuer's keys, and for how many seconds they may be used by its own account. Raises `FetchError`."""
    url = issuer.jwks_url or issuer.discovery_url
    try:
        timeout = aiohttp.ClientTimeout(total=LONGEST_FETCH_SECONDS)
        connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(_tls, issuer.ca_file), limit=1)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=_LARGEST_HEADER_BYTES,
            headers={"Accept": "application/json", "User-Agent": "azureml-fe"},
        ) as session:
            if issuer.jwks_url is None:
                content, _ = await _get(session, url)
                url = read_keys_url(content, issuer.issuer)
            content, cache_control = await _get(session, url)
            return read_keys(content), max_age(cache_control)
    except TimeoutError:
        raise FetchError(f"{url}: no answer within {LONGEST_FETCH_SECONDS:g} s") from None
    except BadAnswer as error:
        raise FetchError(f"{url}: {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(f"{url}: {error or type(error).__name__}") from None


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[bytes, str]:
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise BadAnswer(f"answered with status {answer.status}, where 200 is needed")
        content = b""
        async for piece in answer.content.iter_any():
            content += piece
            if len(content) > LARGEST_ANSWER_BYTES:
                raise BadAnswer(f"the answer is larger than {LARGEST_ANSWER_BYTES} bytes")
        return content, answer.headers.get("Cache-Control", "")


def _tls(ca_file: str | None) -> ssl.SSLContext:
    """Raises OSError for a bundle that cannot be used."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
