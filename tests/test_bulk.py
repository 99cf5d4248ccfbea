"""Rows written by COPY are what the same rows are as instances."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import DataError, IntegrityError, transaction

from marketplace import bulk
from marketplace.core.ids import uuid7
from marketplace.models import StateChange
from scheduler.models import ClearingPrice, Record, Round, Told

pytestmark = pytest.mark.django_db

SOME = 1201
"""Rows: more than are sent at a time, and not a multiple of it."""


def rounds(count, now):
    each = {
        "id": [uuid7() for _ in range(count)],
        "at": [now + timedelta(microseconds=n) for n in range(count)],
        "welfare": [n / 7 - 50 for n in range(count)],
        "seed": [(n - 600) * 2**50 for n in range(count)],
        "book_sha256": [f"{n:064x}" for n in range(count)],
    }
    alike = dict.fromkeys(("jobs", "gpus", "matched_jobs", "matched_gpus"), 7)
    bulk.write(Round, each, alike | {"bound": 1.5, "make_whole": 0.0, "seconds": float("inf")})
    return each


@pytest.mark.parametrize("count", [0, 1, 500, SOME])
def test_as_many_rows_come_back_as_they_were_written(count, now):
    each = rounds(count, now)
    found = Round.objects.in_bulk()
    assert len(found) == count
    for pk, at, welfare, seed, sha256 in zip(*each.values(), strict=True):
        row = found[pk]
        assert (row.at, row.welfare, row.seed, row.book_sha256) == (at, welfare, seed, sha256)
        assert (row.jobs, row.bound, row.seconds) == (7, 1.5, float("inf"))


@pytest.mark.parametrize(
    "text", ["", "plain", "tab\tand\nline\r\\N \\x00", "über 8 × H100 – ok", "'; DROP TABLE x; --"]
)
def test_text_is_kept_to_the_letter(text, now):
    alike = {"machine": "job", "event": "e", "source": "s", "target": "t", "by": text, "at": now}
    bulk.write(StateChange, {"subject": [uuid7()], "reason": [text]}, alike)
    row = StateChange.objects.get()
    assert (row.reason, row.by, row.source) == (text, text, "s")


def test_json_and_moments_of_any_age_are_kept(now):
    says = [{"why": "ünfit", "n": [1, 2.5, None]}, [], "x", False]
    ages = [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2261, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    moments = [*ages, now, now]
    subjects = [uuid7() for _ in says]
    bulk.write(Told, {"subject": subjects, "says": says, "looked_at": moments}, {})
    found = Told.objects.in_bulk()
    assert [found[pk].says for pk in subjects] == says
    assert [found[pk].looked_at for pk in subjects] == moments


def test_what_may_be_missing_may_be_missing_in_some_rows(now):
    ids = rounds(3, now)["id"]
    bulk.write(
        Record,
        {
            "round_id": ids,
            "secret": [b"\x00\xff", b"\x00", b"s" * 5000],
            "raw": [None, b"", b"\\x00\t\n"],
            "is_right": [None, True, False],
            "wanted_at": [now, None, now],
        },
        {"at": now, "matches_sha256": "", "decided": 0.0, "dropped_jobs": 0},
    )
    found = Record.objects.in_bulk()
    rows = [found[pk] for pk in ids]
    assert [bytes(row.secret) for row in rows] == [b"\x00\xff", b"\x00", b"s" * 5000]
    assert [row.raw if row.raw is None else bytes(row.raw) for row in rows] == [
        None, b"", b"\\x00\t\n",
    ]  # fmt: skip
    assert [row.is_right for row in rows] == [None, True, False]
    assert [row.wanted_at for row in rows] == [now, None, now]
    assert [row.curves for row in rows] == [[], [], []]


def test_the_database_has_the_last_word(now):
    (round,) = rounds(1, now)["id"]
    one = {"round_id": [round], "gpu_class": ["h100-sxm"], "cell": ["c"], "slot": [1]}
    alike = {"price_micros": 1, "gpus": 1, "at": now}
    bulk.write(ClearingPrice, one, alike)
    with pytest.raises(IntegrityError, match="one_price_per_cell"), transaction.atomic():
        bulk.write(ClearingPrice, one, alike)
    with pytest.raises(DataError, match="too long"), transaction.atomic():
        bulk.write(ClearingPrice, one | {"cell": ["c" * 121]}, alike)
    with pytest.raises(IntegrityError, match="says"), transaction.atomic():
        bulk.write(Told, {"subject": [uuid7()], "says": [None], "looked_at": [now]}, {})
    with pytest.raises(ValueError, match="not of one length"):
        bulk.write(ClearingPrice, one | {"slot": [1, 2]}, alike)
    with pytest.raises(TypeError, match="no column colour"):
        bulk.write(ClearingPrice, one | {"colour": ["red"]}, alike)
    assert ClearingPrice.objects.count() == 1
