"""Money is integer micros, and metering neither loses nor invents one."""

import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.errors import Invalid
from marketplace.core.money import (
    MAX_AMOUNT,
    MAX_PRICE,
    MICRO,
    accrued,
    affordable_seconds,
    charge,
    fee,
    format_amount,
    gross_ask,
    parse_amount,
    take_of,
)

prices = st.integers(1, MAX_PRICE)
gangs = st.integers(1, 1024)
cuts = st.lists(st.integers(0, 10**6), min_size=2, max_size=20).map(sorted)


@given(prices, gangs, cuts)
def test_however_a_lease_is_metered_it_costs_the_same(price, gpus, cuts):
    pieces = sum(charge(price, gpus, a, b) for a, b in itertools.pairwise(cuts))
    assert pieces == charge(price, gpus, cuts[0], cuts[-1])


@given(prices, gangs, cuts, st.integers(0, 5000))
def test_however_it_is_metered_the_platform_takes_the_same(price, gpus, cuts, bps):
    pieces = sum(fee(price, gpus, a, b, take_bps=bps) for a, b in itertools.pairwise(cuts))
    assert pieces == fee(price, gpus, cuts[0], cuts[-1], take_bps=bps)


@given(prices, gangs, st.integers(0, 10**6), st.integers(0, 10_000), st.integers(0, 9999))
def test_a_slice_never_pays_the_platform_more_than_it_costs(price, gpus, since, length, bps):
    until = since + length
    kept = fee(price, gpus, since, until, take_bps=bps)
    assert 0 <= kept <= charge(price, gpus, since, until)


@given(st.integers(1, MAX_PRICE), st.integers(0, 5000))
def test_nobody_nets_less_than_they_asked(net, bps):
    gross = gross_ask(net, take_bps=bps)
    assert accrued(gross, 1, 3600) - fee(gross, 1, 0, 3600, take_bps=bps) >= net


@given(st.integers(1, MAX_PRICE), st.integers(0, 2 * MAX_PRICE), st.integers(0, 5000))
def test_a_price_below_the_ask_is_made_up_for_out_of_the_take(net, more, bps):
    price = net + more
    taken = take_of(price, net, take_bps=bps)
    assert 0 <= taken <= bps
    assert accrued(price, 1, 3600) - fee(price, 1, 0, 3600, take_bps=taken) >= net
    if price >= gross_ask(net, take_bps=bps):
        assert taken == bps


def test_no_take_makes_up_for_a_price_below_what_the_supplier_nets():
    with pytest.raises(ValueError, match="can't leave a supplier 100"):
        take_of(99, 100, take_bps=800)


@given(prices, gangs, st.integers(0, MAX_AMOUNT))
def test_what_is_affordable_is_exactly_what_the_money_covers(price, gpus, micros):
    seconds = affordable_seconds(price, gpus, micros)
    assert accrued(price, gpus, seconds) <= micros < accrued(price, gpus, seconds + 1)


@pytest.mark.parametrize(
    "bad",
    ["0", "-1", "nan", "NaN", "inf", "-inf", "1e3", "", " ", "abc", "0.0000001", "1,5", "0x10",
     "10000000000", True, False, 1.5, None, [], float("nan")],
)  # fmt: skip
def test_an_amount_that_makes_no_sense_is_refused_by_name(bad):
    with pytest.raises(Invalid) as refused:
        parse_amount(bad, field="limit")
    assert refused.value.field == "limit"
    assert "limit" in str(refused.value)


@given(st.integers(1, MAX_AMOUNT))
def test_an_amount_survives_being_written_down(micros):
    assert parse_amount(format_amount(micros).replace(",", "")) == micros


def test_amounts_come_as_text_integers_or_decimals():
    assert parse_amount("1.25") == parse_amount(Decimal("1.25")) == 1_250_000
    assert parse_amount(3) == 3 * MICRO


def test_amounts_show_only_the_places_that_they_need():
    assert format_amount(1_250_000) == "1.25"
    assert format_amount(1) == "0.000001"
    assert format_amount(1_000_000, places=0) == "1"
    assert format_amount(-2_500_000) == "-2.50"
