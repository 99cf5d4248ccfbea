"""Which rows a step reads depends on (seed, step, shard) alone."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.recipes.order import Blend, Order

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_an_epoch_reads_each_row_at_most_once_and_nearly_all(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    order = Order(lengths, batch_size=batch_size, seed=seed)
    size = min(batch_size, len(lengths))
    steps = len(lengths) // size
    seen = Counter(row for step in range(steps) for row in order.rows(step))
    assert set(seen.values()) == {1}
    assert len(seen) == steps * size


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), step=st.integers(0, 1000))
def test_a_steps_rows_depend_on_nothing_that_came_before(
    lengths: list[int], batch_size: int, step: int
) -> None:
    fresh = Order(lengths, batch_size=batch_size, seed=3)
    used = Order(lengths, batch_size=batch_size, seed=3)
    for earlier in range(min(step, 50)):
        used.rows(earlier)
    assert fresh.rows(step) == used.rows(step)


def blend(share: float = 0.0, others: int = 30) -> Blend:
    main = Order([n % 9 for n in range(100)], batch_size=8, seed=1)
    other = Order([n % 5 for n in range(others)], batch_size=8, seed=1) if share else None
    return Blend(main, other, share=share, seed=1)


@given(shards=st.integers(1, 7), step=st.integers(0, 30), share=st.sampled_from([0.0, 0.3]))
def test_shards_share_a_steps_rows_however_many_they_are(
    shards: int, step: int, share: float
) -> None:
    mixed = blend(share)
    split = [row for shard in range(shards) for row in mixed.rows(step, shard=shard, shards=shards)]
    assert sorted(split) == sorted(mixed.rows(step))


@given(share=st.sampled_from([0.1, 0.25, 0.9]), steps=st.integers(1, 60), others=st.integers(1, 9))
def test_the_asked_share_of_rows_comes_from_the_mix(share: float, steps: int, others: int) -> None:
    mixed = blend(share, others)
    tables = Counter(table for step in range(steps) for table, _ in mixed.rows(step))
    assert tables[1] == int(8 * steps * share)
    assert tables[0] == 8 * steps - tables[1]


def test_what_is_mixed_in_depends_on_nothing_that_came_before() -> None:
    used = blend(0.3)
    for step in range(20):
        used.rows(step)
    assert used.rows(33) == blend(0.3).rows(33)


def test_batches_hold_rows_of_like_length() -> None:
    lengths = [(n * 7919) % 400 for n in range(800)]
    order = Order(lengths, batch_size=8, seed=0)
    widths = [
        max(lengths[row] for row in order.rows(step))
        - min(lengths[row] for row in order.rows(step))
        for step in range(100)
    ]
    assert sum(widths) / len(widths) < 60, "a random batch of 8 spans 311 of 400"
