"""The documents' numbers are what the market does."""

import json
from pathlib import Path

import pytest

from marketplace.core.money import MICRO
from scheduler.matching import book as books
from scheduler.matching import matches as results
from scheduler.matching.arrays import TEXT
from scheduler.matching.clear import clear
from tests.matching.rows import a_book, a_node, an_order, checked

DOCS = Path(__file__).resolve().parents[2] / "docs"


def table(
    heading: str, page: str = "mechanism-for-economists.md", after: str = ""
) -> list[list[str]]:
    """The rows of a page's table whose first column has this heading, the first after some words."""
    text = (DOCS / page).read_text("utf-8")
    if after:
        text = text.partition(after)[2]
    lines = text.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_worked_example_clears_as_it_says():
    nodes, gangs = table("node"), table("gang")
    figures = {name: float(amount) for name, amount in table("figure of the round")}
    book = a_book(
        [
            an_order(int(name), limits={"sxm": float(limit)}, gpus_min=int(n), gpus_max=int(n), level=0)
            for name, n, limit, _, _ in gangs
        ],
        [
            a_node(number, gpus=int(free), ask=float(ask))
            for number, (_, free, ask) in enumerate(nodes)
        ],
    )  # fmt: skip
    matches = checked(book, clear(book))
    paid = dict(zip(matches.job.tolist(), matches.price.tolist(), strict=True))
    said = {at: float(pays) for at, (*_, placed, pays) in enumerate(gangs) if placed == "yes"}
    assert len(said) == 2
    assert paid == pytest.approx(said)
    found = {"welfare": matches.welfare, "bound": matches.bound, "make-whole": matches.make_whole}
    assert found == pytest.approx(figures, abs=1 / MICRO)


@pytest.mark.parametrize(
    ("file", "schema"), [("BOOK.npz", books.SCHEMA), ("MATCHES.npz", results.SCHEMA)]
)
def test_the_files_of_a_round_hold_what_their_page_says(file, schema):
    said = table("array", "round-files.md", f"## {file}")
    assert [(name.strip("`"), kind, shape) for name, kind, shape, _ in said] == [
        (name, "text" if is_.dtype == TEXT else is_.dtype.lstrip("<|"), ", ".join(is_.axes))
        for name, is_ in schema.items()
    ]


def test_the_rules_of_a_round_are_by_default_what_their_page_says():
    said = table("in `params`", "round-files.md")
    found = {name.strip("`"): json.loads(value) for name, value, _ in said}
    assert found == json.loads(books.Params().as_json())
