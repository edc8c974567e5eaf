"""Request ids."""

import re
import uuid
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.http.ids import RequestIds, clean_client_id

COUNT = 1000  # several blocks of ids


def test_ids_are_valid_and_unique_uuids() -> None:
    ids = RequestIds()
    generated = [ids.next().decode() for _ in range(COUNT)]
    assert len(set(generated)) == COUNT
    for text in generated:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_ids_of_different_workers_differ() -> None:
    generated = {ids.next() for ids in [RequestIds() for _ in range(50)] for _ in range(50)}
    assert len(generated) == 2500


def test_an_id_reveals_nothing_about_the_next() -> None:
    """A counter would reveal how many requests came between two of a client's own."""
    ids = RequestIds()
    generated = [ids.next() for _ in range(COUNT)]
    differences = {
        abs(uuid.UUID(later.decode()).int - uuid.UUID(id_.decode()).int) for id_, later in pairwise(generated)
    }
    assert len(differences) == COUNT - 1
    for position in (index for index in range(36) if index not in (8, 13, 14, 18, 23)):
        digits = [id_[position] for id_ in generated]
        values = set(digits)
        assert values == set(b"89ab" if position == 19 else b"0123456789abcdef")
        equal = sum(1 for digit, next_digit in pairwise(digits) if digit == next_digit)
        expected = COUNT / len(values)
        assert expected / 4 < equal < 2 * expected  # six standard deviations or more


@given(st.binary(max_size=200))
def test_client_id_is_reduced_to_40_safe_characters(value: bytes) -> None:
    cleaned = clean_client_id(value)
    assert re.fullmatch(rb"[A-Za-z0-9_-]{0,40}", cleaned)
    safe = bytes(byte for byte in value if re.match(rb"[A-Za-z0-9_-]", bytes((byte,))))
    assert cleaned == safe[:40]
