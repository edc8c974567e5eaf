"""Ids of requests."""

import re
import uuid

from hypothesis import given
from hypothesis import strategies as st

from router.http.ids import RequestIds, clean_client_id


@given(st.binary(min_size=16, max_size=16))
def test_each_id_is_a_valid_uuid_and_a_new_one(entropy: bytes) -> None:
    ids = RequestIds(entropy)
    made = [ids.next().decode() for _ in range(20)]
    assert len(set(made)) == 20
    for text in made:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_ids_begin_anew_only_after_all_were_made() -> None:
    ids = RequestIds(b"\xff" * 16)
    first, second = ids.next(), ids.next()
    assert len(first) == len(second) == 36
    assert first != second


def test_workers_do_not_make_the_same_ids() -> None:
    made = {worker.next() for worker in [RequestIds() for _ in range(50)] for _ in range(50)}
    assert len(made) == 2500


@given(st.binary(max_size=200))
def test_clients_id_keeps_its_safe_part_up_to_40(value: bytes) -> None:
    cleaned = clean_client_id(value)
    assert re.fullmatch(rb"[A-Za-z0-9_-]{0,40}", cleaned)
    safe = bytes(byte for byte in value if re.match(rb"[A-Za-z0-9_-]", bytes((byte,))))
    assert cleaned == safe[:40]
