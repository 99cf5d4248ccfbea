"""A round's root: what it fixes, what a proof shows, and that nothing planted gets through."""

import hashlib
import json
from dataclasses import asdict, replace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.core.errors import Invalid
from scheduler.matching import book as books
from scheduler.matching import matches as results
from scheduler.matching import proofs, verify
from scheduler.matching.check import amounts
from scheduler.matching.clear import clear
from scheduler.matching.synthetic import Plan, make
from scheduler.matching.verify import Published, Released
from scheduler.numbering import numbers, salting_key
from tests.matching.rows import edited

SECRET = b"s" * 32
KEY = salting_key(SECRET)


@pytest.fixture(scope="module")
def released():
    """A round of which two matches were dropped."""
    book = make(Plan(jobs=30, nodes=40, seed=3))
    matches = clear(book, lambda: False)
    dropped = np.zeros(book.jobs, bool)
    dropped[np.flatnonzero(matches.level >= 0)[:2]] = True
    return Released(book, matches, dropped)


@pytest.fixture(scope="module")
def published(released):
    kept = results.without(released.matches, released.dropped)
    leaves = proofs.leaves(released.book, released.matches, released.dropped, KEY)
    return Published(
        book_sha256=books.digest(released.book),
        matches_sha256=results.digest(released.matches),
        root=proofs.Tree(leaves).root,
        leaves=len(leaves),
        salting_key=KEY.hex(),
        seed=released.book.params.seed,
        matched_jobs=int((kept.level >= 0).sum()),
        matched_gpus=int(kept.gpus.sum()),
        bound=released.matches.bound,
        **asdict(amounts(released.book, kept)),
    )


def test_a_round_as_it_was_published_is_right(published, released):
    assert verify.verify(published, released) == []


def rfc_6962(leaves):
    """The tree's hash, by the definition."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    both = rfc_6962(leaves[:half]) + rfc_6962(leaves[half:])
    return hashlib.sha256(b"\1" + both).digest()


@given(st.lists(st.binary(min_size=17, max_size=30), max_size=40))
@settings(deadline=None)
def test_the_root_is_that_of_rfc_6962_and_every_leaf_proves_it(content):
    content = [leaf[:16] + b"r" for leaf in content]
    tree = proofs.Tree(content)
    assert tree.root == rfc_6962(content).hex()
    for index in range(len(content)):
        assert proofs.holds(proofs.prove(tree, content, index))


def test_a_proof_shows_a_row_with_its_matches_and_survives_json(released):
    content = proofs.leaves(released.book, released.matches, released.dropped, KEY)
    tree = proofs.Tree(content)
    job = int(released.matches.job[-1])
    proof = proofs.read(json.loads(json.dumps(asdict(proofs.prove(tree, content, job)))))
    assert proofs.holds(proof)
    row = json.loads(proof.row)
    assert row["job_id"] == str(released.book.job_id[job])
    node = int(released.matches.node[-1])
    assert row["matches"][-1][0] == str(released.book.node_id[node])
    other = json.loads(proofs.prove(tree, content, released.book.jobs + node).row)
    assert other["node_id"] == row["matches"][-1][0]
    assert row["job_id"] in [match[0] for match in other["matches"]]


def test_no_part_of_a_proof_can_be_changed(released):
    content = proofs.leaves(released.book, released.matches, released.dropped, KEY)
    tree = proofs.Tree(content)
    proof, other = (proofs.prove(tree, content, at) for at in (5, 6))
    changed = [
        replace(proof, row=proof.row.replace('"job_level":', '"job_Level":')),
        replace(proof, row=other.row),
        replace(proof, salt=other.salt),
        replace(proof, index=6),
        replace(proof, index=-1),
        replace(proof, index=proof.leaves),
        replace(proof, path=other.path),
        replace(proof, path=proof.path[:-1]),
        replace(proof, path=[*proof.path, proof.path[0]]),
        replace(proof, path=["zz", *proof.path[1:]]),
        replace(proof, root="0" * 64),
        replace(proof, leaves=8),
        replace(proof, salt=proof.salt + proof.row[:2].encode().hex(), row=proof.row[2:]),
    ]
    assert [proofs.holds(each) for each in changed] == [False] * len(changed)
    with pytest.raises(Invalid, match="path"):
        proofs.read({**asdict(proof), "path": "abc"})


def test_whatever_is_changed_after_the_round_is_found(published, released):
    """Each with the hashes of book and matches made right again, so that others must find it."""
    book, matches = released.book, released.matches
    limit = book.job_limit.copy()
    limit[0] *= 1.01
    level = matches.level.copy()
    planted = {
        "a limit": replace(released, book=edited(book, job_limit=limit)),
        "an age": replace(released, book=edited(book, job_age_h=book.job_age_h + 1)),
        "two rows swapped": replace(
            released,
            book=edited(book, **{
                name: np.concatenate([getattr(book, name)[[1, 0]], getattr(book, name)[2:]])
                for name in books.JOBS
            }),
        ),
        "a row left out": replace(
            released, book=books.reordered(book, np.arange(book.jobs - 1), np.arange(book.nodes)),
            matches=replace(matches, level=level[:-1], gpu_class=matches.gpu_class[:-1]),
            dropped=released.dropped[:-1],
        ),
        "what was dropped": replace(released, dropped=np.zeros(book.jobs, bool)),
        "a price": replace(released, matches=replace(matches, price=matches.price * 1.001)),
    }  # fmt: skip
    for name, what in planted.items():
        hashed = replace(
            published,
            book_sha256=books.digest(what.book),
            matches_sha256=results.digest(what.matches),
        )
        assert any("root is" in fault for fault in verify.verify(hashed, what)), name
        if name != "what was dropped":
            assert any("sha256" in fault for fault in verify.verify(published, what)), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root", "0" * 64), ("leaves", 1), ("seed", 0), ("matched_jobs", 1), ("matched_gpus", 1),
        ("welfare", 1.0), ("bound", 1.0), ("make_whole", 1.0), ("salting_key", "00"),
        ("salting_key", "no hex"), ("book_sha256", "0" * 64), ("matches_sha256", "0" * 64),
    ],
)  # fmt: skip
def test_a_round_that_published_something_else_is_found(published, released, name, value):
    assert verify.verify(replace(published, **{name: value}), released)


def test_numbers_say_nothing_in_another_round():
    ids = [str(uuid4()) for _ in range(50)]
    first, second = numbers(SECRET, ids), numbers(b"t" * 32, ids)
    assert not np.isin(first, second).any()
    assert (numbers(SECRET, ids) == first).all()
    assert KEY.hex() not in {hashlib.blake2b(key=SECRET).hexdigest(), SECRET.hex()}
    assert len(numbers(SECRET, [])) == 0
