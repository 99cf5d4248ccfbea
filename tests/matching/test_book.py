"""The order book: built from rows, refused by name, the same from file to file."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marketplace.core.errors import Invalid
from scheduler.matching import matches as results
from scheduler.matching.book import (
    SCHEMA,
    Book,
    ClassRow,
    Params,
    SiteRow,
    build,
    digest,
    load,
    reordered,
    save,
)
from scheduler.matching.cells import Names, cells, labels, slots
from scheduler.matching.clear import clear
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import CLASSES, SITE, a_book, a_node, an_order, edited


@pytest.fixture
def book() -> Book:
    return make(Plan(jobs=12, nodes=20, seed=3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book.npz"


def written(book: Book, **changes: object) -> dict[str, np.ndarray]:
    """The arrays of a book as a file would hold them, some replaced or, if None, left out."""
    named = {**book.as_arrays(), **changes}
    return {name: np.asarray(array) for name, array in named.items() if array is not None}


def test_a_book_comes_back_from_its_file(book: Book, path: Path) -> None:
    save(book, path)
    again = load(path)
    assert again.params == book.params
    for name, array in book.as_arrays().items():
        np.testing.assert_array_equal(again.as_arrays()[name], array)
        assert again.as_arrays()[name].dtype == array.dtype


def test_the_same_book_makes_the_same_bytes(book: Book, path: Path, tmp_path: Path) -> None:
    save(book, path)
    save(make(Plan(jobs=12, nodes=20, seed=3)), tmp_path / "again.npz")
    assert path.read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_the_digest_is_the_same_on_every_machine() -> None:
    book = a_book([an_order(gpus_min=2, gpus_max=4)], [a_node(), a_node(2, ask=0.5)])
    assert digest(book) == ("42db3ddd1485ef4cfe0a2fd1275a87d206fb1e82b405cbce880d32091c3bed08")


@pytest.mark.parametrize("name", sorted(SCHEMA))
def test_the_digest_sees_every_array(book: Book, name: str) -> None:
    if name == "params":
        other = replace(book, params=replace(book.params, ageing_cap=0.1))
    else:
        array = getattr(book, name).copy()
        array.flat[0] = array.flat[0] + 1 if array.flat[0] == 0 else array.flat[0] - 1
        other = book_without_checks(book, name, array)
    assert digest(other) != digest(book)


def book_without_checks(book: Book, name: str, array: np.ndarray) -> Book:
    """A copy whose array may break a rule: only the digest is of interest."""
    other = object.__new__(Book)
    other.__dict__.update(book.__dict__ | {name: array})
    return other


@pytest.mark.parametrize("name", sorted(SCHEMA))
def test_a_missing_array_is_named(book: Book, path: Path, name: str) -> None:
    np.savez(path, **written(book, **{name: None}))
    with pytest.raises(Invalid, match=name) as refusal:
        load(path)
    assert refusal.value.field == name


@pytest.mark.parametrize("name", sorted(set(SCHEMA) - {"params"}))
def test_an_array_of_another_type_is_named(book: Book, path: Path, name: str) -> None:
    array = getattr(book, name)
    other = array.astype("<i8" if array.dtype.kind == "f" else "<f8")
    np.savez(path, **written(book, **{name: other}))
    with pytest.raises(Invalid, match=f"{name} must be of type"):
        load(path)


def test_an_array_of_the_other_byte_order_is_refused(book: Book, path: Path) -> None:
    np.savez(path, **written(book, node_ask=book.node_ask.astype(">f8")))
    with pytest.raises(Invalid, match="node_ask must be of type <f8"):
        load(path)


@pytest.mark.parametrize("name", sorted(set(SCHEMA) - {"params"}))
def test_an_array_of_another_shape_is_named(book: Book, path: Path, name: str) -> None:
    np.savez(path, **written(book, **{name: getattr(book, name)[None]}))
    with pytest.raises(Invalid, match=f"{name} must have"):
        load(path)


def test_arrays_of_different_lengths_are_refused(book: Book, path: Path) -> None:
    np.savez(path, **written(book, job_kappa=book.job_kappa[1:]))
    with pytest.raises(Invalid, match="job_kappa has 11 entries along J, where 12 are needed"):
        load(path)


def test_an_unknown_array_is_named(book: Book, path: Path) -> None:
    np.savez(path, **written(book, job_colour=np.zeros(12)))
    with pytest.raises(Invalid, match="no array 'job_colour'"):
        load(path)


def test_notes_of_somebody_else_are_ignored(book: Book, path: Path) -> None:
    np.savez(path, **written(book, x_note=np.zeros(3)))
    assert digest(load(path)) == digest(book)


def test_a_pickle_is_not_read(book: Book, path: Path) -> None:
    np.savez(path, **written(book, node_ask=np.array([print] * book.nodes, object)))
    with pytest.raises(
        Invalid, match="not a .npz file of plain arrays: node_ask: Object"
    ) as refusal:
        load(path)
    assert refusal.value.field == "node_ask"


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"a book"])
def test_what_is_no_npz_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Invalid, match="not a .npz file"):
        load(path)


def test_a_single_array_is_no_book(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(Invalid, match="not a .npz file"):
        load(path)


def test_a_truncated_book_is_refused(book: Book, path: Path) -> None:
    save(book, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Invalid, match="not a .npz file"):
        load(path)


def test_what_is_no_array_is_named(book: Book, path: Path) -> None:
    np.savez(path, **written(book, node_ask=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("node_ask.npy", b"no array")
    with pytest.raises(Invalid, match="node_ask in .* is not an array"):
        load(path)


def test_a_damaged_array_is_refused(book: Book, path: Path) -> None:
    save(book, path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("job_limit.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 60 : start + 90] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(Invalid, match="not a .npz file"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("job_gpus_min", 0),
        ("job_gpus_max", 5000),
        ("job_level", 3),
        ("job_kappa", 1.5),
        ("job_kappa", np.nan),
        ("job_limit", -1.0),
        ("job_limit", np.inf),
        ("job_hours_lost", np.inf),
        ("job_trust", 4),
        ("job_tier", -1),
        ("job_long", 2),
        ("job_sites_max", 0),
        ("node_gpus", 17),
        ("node_ask", -0.01),
        ("node_ask", np.nan),
        ("node_tier", 3),
        ("site_region", 64),
        ("site_net", 3),
        ("class_nvlink", 2),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    book = a_book([an_order()], [a_node()])
    array = getattr(book, name).copy()
    array.flat[0] = value
    with pytest.raises(Invalid, match=name) as refusal:
        replace(book, **{name: array})
    assert refusal.value.field == name


def test_rows_that_point_nowhere_are_named() -> None:
    book = a_book([an_order()], [a_node()])
    with pytest.raises(Invalid, match="node_site points past the last of 1"):
        edited(book, node_site=[1])
    with pytest.raises(Invalid, match="node_class points past the last of 2"):
        edited(book, node_class=[2])


def test_a_number_given_twice_is_refused() -> None:
    with pytest.raises(Invalid, match="job_id holds a number twice"):
        a_book([an_order(1), an_order(1)], [])
    with pytest.raises(Invalid, match="node_id holds a number twice"):
        a_book([], [a_node(1), a_node(1)])


def test_a_gang_can_not_want_fewer_at_most_than_at_least() -> None:
    with pytest.raises(Invalid, match="job_gpus_max lies below job_gpus_min"):
        a_book([an_order(gpus_min=4, gpus_max=2)], [])


def test_rows_of_unknown_classes_and_sites_are_refused() -> None:
    with pytest.raises(Invalid, match="node 1 has unknown class 'tpu'"):
        a_book([], [a_node(gpu_class="tpu")])
    with pytest.raises(Invalid, match="node 1 has unknown site 'z'"):
        a_book([], [a_node(site="z")])
    with pytest.raises(Invalid, match="two classes have the same name"):
        build([], [], [], [ClassRow("sxm"), ClassRow("sxm")], seed=1)
    with pytest.raises(Invalid, match="two sites have the same id"):
        build([], [], [SITE, SITE], CLASSES, seed=1)


def test_a_limit_for_a_class_that_nobody_trades_is_left_out() -> None:
    book = a_book([an_order(limits={"tpu": 9.0, "pcie": 1.5})], [a_node()])
    assert book.job_limit.tolist() == [[0.0, 1.5]]


def test_a_value_that_its_array_can_not_hold_is_named() -> None:
    with pytest.raises(Invalid, match="node_gpus can't hold its values"):
        a_book([], [a_node(gpus=300)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no", "not JSON"),
        ("[]", "exactly"),
        ('{"seed": 1}', "exactly"),
        (Params().as_json().replace("0.35", "null"), "penalty_site must be three numbers"),
        (Params().as_json().replace("0.35", "1.35"), "penalty_site must be three numbers"),
        (Params().as_json().replace(", 0.35", ""), "penalty_site must be three numbers"),
        (Params().as_json().replace("0.1,", "true,"), "penalty_node_pcie must be a number"),
        (Params().as_json().replace('"seed": 0', '"seed": -1'), "seed must be"),
        (Params().as_json().replace('"seed": 0', '"seed": 1.0'), "seed must be"),
    ],
)
def test_params_are_refused_by_name(book: Book, path: Path, text: str, said: str) -> None:
    np.savez(path, **written(book, params=np.array(text)))
    with pytest.raises(Invalid, match=said):
        load(path)


def test_a_book_can_not_be_changed(book: Book) -> None:
    with pytest.raises(ValueError, match="read-only"):
        book.node_ask[0] = 0


def test_a_book_of_nothing_is_a_book(path: Path) -> None:
    empty = build([], [], [], [], seed=0)
    save(empty, path)
    assert digest(load(path)) == digest(empty)


def test_the_only_node_of_a_site_trades_with_its_like() -> None:
    sites = [replace(SITE, id=name, up_mbps=up) for name, up in (("a", 10.0), ("b", 99.0))]
    sites.append(replace(SITE, id="c"))
    nodes = [a_node(1), a_node(2, site="b"), a_node(3, site="c"), a_node(4, site="c")]
    kinds = cells(a_book([], nodes, sites))
    assert kinds.of_node.tolist() == [0, 0, 1, 1]
    called = labels(kinds, Names(["sxm", "pcie"], ["a", "b", "c"]))
    assert called == ["sxm/eu-west-trust-1/tier-0", "sxm/c/tier-0"]


def test_nodes_that_differ_to_a_job_are_in_different_cells() -> None:
    nodes = [a_node(1), a_node(2, tier=1), a_node(3, long=True), a_node(4, gpu_class="pcie")]
    assert len(cells(a_book([], nodes))) == 4
    assert labels(cells(a_book([], nodes)), Names(["sxm", "pcie"], ["hall 3"])) == [
        "sxm/hall 3/tier-0",
        "sxm/hall 3/tier-1",
        "sxm/hall 3/tier-0-long",
        "pcie/hall 3/tier-0",
    ]


@pytest.mark.parametrize(("gpus", "cut"), [(0, []), (1, [1]), (7, [4, 2, 1]), (16, [8, 8])])
def test_gpus_of_a_node_are_cut_into_the_fewest_slots(gpus: int, cut: list[int]) -> None:
    assert slots(gpus) == cut


def test_some_rows_of_a_book_are_a_book(book: Book) -> None:
    some = reordered(book, np.array([4, 2]), np.array([0, 7, 3]))
    assert some.job_id.tolist() == [4, 2]
    assert some.node_id.tolist() == [0, 7, 3]
    assert some.params == book.params


def test_matches_come_back_from_their_file(book: Book, path: Path) -> None:
    matches = clear(book)
    results.save(matches, path)
    for name, array in results.load(path).as_arrays().items():
        np.testing.assert_array_equal(array, matches.as_arrays()[name])
    with np.load(path) as archive:
        assert set(archive.files) == set(results.SCHEMA)


def test_matches_are_refused_by_name(book: Book, path: Path) -> None:
    named = clear(book).as_arrays()
    for name in results.SCHEMA.keys() - {"balance"}:
        np.savez(path, **{key: array for key, array in named.items() if key != name})
        with pytest.raises(Invalid, match=f"'{name}' is missing"):
            results.load(path)
    np.savez(path, **{**named, "welfare": np.array(np.nan)})
    with pytest.raises(Invalid, match="welfare is nan"):
        results.load(path)


def test_regions_past_those_we_know_have_a_label() -> None:
    book = a_book([], [a_node()], [SiteRow("a", region=60)])
    called = labels(cells(book), Names(["sxm", "pcie"], ["a"]))
    assert called == ["sxm/region-60-trust-3/tier-0"]
