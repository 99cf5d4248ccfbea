"""The order book of one round, as arrays: who wants GPUs and who lets them.

Positions are indexes: `node_site[3]` is the site of node 3. Money is USD per GPU-hour, gross (what
the buyer pays). Row order carries no meaning. The classes' and sites' names stand beside the book,
not in it: a published book names nobody. `docs/round-files.md` tells the file, array by array.
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marketplace.core.errors import Invalid
from scheduler.matching import arrays
from scheduler.matching.arrays import TEXT, Array, Column, Ints, Schema, Source

MOST_GPUS: Final = 4096
"""The largest gang."""
NODE_GPUS: Final = 16
"""The largest node."""
MOST_PRICE: Final = 1e6

JOBS: Final[Schema] = {
    "job_id": Column("<u8", ("J",)),
    "job_gpus_min": Column("<i4", ("J",), 1, MOST_GPUS),
    "job_gpus_max": Column("<i4", ("J",), 1, MOST_GPUS),
    "job_level": Column("|i1", ("J",), 0, 2),
    "job_limit": Column("<f8", ("J", "C"), 0, MOST_PRICE),
    "job_kappa": Column("<f4", ("J",), 0, 1),
    "job_hours_lost": Column("<f4", ("J",), 0),
    "job_regions": Column("<u8", ("J",)),
    "job_trust": Column("|i1", ("J",), 0, 3),
    "job_tier": Column("|i1", ("J",), 0, 2),
    "job_long": Column("|i1", ("J",), 0, 1),
    "job_age_h": Column("<f4", ("J",), 0),
    "job_sync_mb": Column("<f4", ("J",), 0),
    "job_sync_s": Column("<f4", ("J",), 0),
    "job_site_gpus_min": Column("<i2", ("J",), 1),
    "job_sites_max": Column("<i2", ("J",), 1),
}
NODES: Final[Schema] = {
    "node_id": Column("<u8", ("N",)),
    "node_class": Column("<i2", ("N",), 0),
    "node_site": Column("<i4", ("N",), 0),
    "node_gpus": Column("|i1", ("N",), 0, NODE_GPUS),
    "node_ask": Column("<f8", ("N",), 0, MOST_PRICE),
    "node_tier": Column("|i1", ("N",), 0, 2),
    "node_long": Column("|i1", ("N",), 0, 1),
}
PLACES: Final[Schema] = {
    "class_nvlink": Column("|i1", ("C",), 0, 1),
    "site_region": Column("|i1", ("S",), 0, 63),
    "site_trust": Column("|i1", ("S",), 0, 3),
    "site_net": Column("|i1", ("S",), 0, 2),
    "site_up_mbps": Column("<f4", ("S",), 0),
}
SCHEMA: Final[Schema] = {**JOBS, **NODES, **PLACES, "params": Column(TEXT)}


@dataclass(frozen=True)
class Params:
    """The round's rules; published with the book."""

    penalty_node_pcie: float = 0.10
    """Speed that a gang loses in one node without NVLink, times its κ."""
    penalty_site: tuple[float, float, float] = (0.05, 0.12, 0.35)
    """The same over a site's network: InfiniBand, RoCE, Ethernet."""
    failures_per_gpu_hour: tuple[float, float, float] = (2e-5, 2e-4, 2e-3)
    """By tier, best first."""
    ageing_per_hour: float = 0.02
    """How much earlier a job is tried per hour waited, as a share of its surplus."""
    ageing_cap: float = 0.2
    seed: int = 0
    """Breaks ties; published."""

    def as_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Params":
        """Raises Invalid naming what is missing, unknown or not a number of the right range."""
        try:
            given = json.loads(text)
        except ValueError as error:
            raise Invalid(f"params is not JSON: {error}", field="params") from error
        names = {item.name for item in fields(cls)}
        if not isinstance(given, dict) or set(given) != names:
            raise Invalid(f"params must hold exactly {', '.join(sorted(names))}", field="params")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        params = cls(**values)
        params.validate()
        return params

    def validate(self) -> None:
        """Raises Invalid unless shares lie in 0..1, rates are ≥ 0 and the seed is a u64."""
        for name, most in _PARAM_MOST.items():
            value = getattr(self, name)
            several = isinstance(getattr(Params, name), tuple)
            numbers = value if several else (value,)
            right = not several or (isinstance(value, tuple) and len(value) == 3)
            if not right or not all(_is_number(n) and 0 <= n <= most for n in numbers):
                shape = "three numbers" if several else "a number"
                raise Invalid(f"params.{name} must be {shape} from 0 to {most:g}", field="params")
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise Invalid("params.seed must be a whole number below 2**64", field="params")


_PARAM_MOST: Final = {
    "penalty_node_pcie": 1.0,
    "penalty_site": 1.0,
    "failures_per_gpu_hour": 1e6,
    "ageing_per_hour": 1e6,
    "ageing_cap": 1e6,
}


@dataclass(frozen=True, eq=False)
class Book:
    """The arrays of one round; validated and made read-only when built."""

    job_id: NDArray[np.uint64]
    job_gpus_min: NDArray[np.int32]
    job_gpus_max: NDArray[np.int32]
    job_level: NDArray[np.int8]  # the loosest acceptable: 0 one node, 1 one site, 2 any
    job_limit: NDArray[np.float64]  # [J, C]; 0 = not acceptable, too little memory included
    job_kappa: NDArray[np.float32]  # share of time spent communicating inside a site
    job_hours_lost: NDArray[np.float32]  # per interruption
    job_regions: NDArray[np.uint64]  # bit mask
    job_trust: NDArray[np.int8]  # worst acceptable: 0 contracted … 3 community
    job_tier: NDArray[np.int8]  # worst acceptable: 0 best … 2
    job_long: NDArray[np.int8]  # needs a long window
    job_age_h: NDArray[np.float32]  # hours waited
    job_sync_mb: NDArray[np.float32]  # megabytes per synchronisation between sites
    job_sync_s: NDArray[np.float32]  # seconds of computing between two; 0 = can't span sites
    job_site_gpus_min: NDArray[np.int16]  # in each site, when a gang spans several
    job_sites_max: NDArray[np.int16]
    node_id: NDArray[np.uint64]
    node_class: NDArray[np.int16]
    node_site: NDArray[np.int32]
    node_gpus: NDArray[np.int8]  # free
    node_ask: NDArray[np.float64]
    node_tier: NDArray[np.int8]
    node_long: NDArray[np.int8]  # offers a long window
    class_nvlink: NDArray[np.int8]
    site_region: NDArray[np.int8]  # number of the region's bit
    site_trust: NDArray[np.int8]
    site_net: NDArray[np.int8]  # 0 InfiniBand, 1 RoCE, 2 Ethernet
    site_up_mbps: NDArray[np.float32]
    params: Params

    def __post_init__(self) -> None:
        """Raises Invalid naming the array at fault."""
        named = self.as_arrays()
        arrays.conform(named, SCHEMA)
        self.params.validate()
        _check_relations(self)
        for array in named.values():
            array.flags.writeable = False

    def as_arrays(self) -> dict[str, Array]:
        """Every array by its name in the file format."""
        named: dict[str, Array] = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "params"
        }
        return named | {"params": np.array(self.params.as_json())}

    @cached_property
    def jobs(self) -> int:
        return len(self.job_id)

    @cached_property
    def nodes(self) -> int:
        return len(self.node_id)


@dataclass(frozen=True)
class Order:
    """A job as a plain row. `limits` maps class names to USD per GPU-hour; absent = 0."""

    id: int
    limits: Mapping[str, float]
    gpus_min: int = 1
    gpus_max: int = 1
    level: int = 0
    kappa: float = 0.0
    hours_lost: float = 0.0
    regions: int = 2**64 - 1
    trust: int = 3
    tier: int = 2
    long: bool = False
    age_h: float = 0.0
    sync_mb: float = 0.0
    sync_s: float = 0.0
    site_gpus_min: int = 1
    sites_max: int = 1


@dataclass(frozen=True)
class Supply:
    """A node as a plain row: `gpu_class` one of the classes' names, `site` a SiteRow's id."""

    id: int
    gpu_class: str
    site: Hashable
    gpus: int
    ask: float
    tier: int = 2
    long: bool = False


@dataclass(frozen=True)
class SiteRow:
    """A site; sites whose nodes the book lacks do no harm."""

    id: Hashable
    region: int
    trust: int = 3
    net: int = 2
    up_mbps: float = 100.0


@dataclass(frozen=True)
class ClassRow:
    """A GPU class; opaque to the engine but for its interconnect inside a node."""

    name: str
    nvlink: bool = False


def build(
    orders: Sequence[Order],
    nodes: Sequence[Supply],
    sites: Sequence[SiteRow],
    classes: Sequence[ClassRow],
    *,
    seed: int,
    params: Params = Params(),
) -> Book:
    """A book from plain rows; limits for classes that nobody trades are left out.

    Raises Invalid naming the array at fault, or the node whose class or site is not given.
    """
    class_of = _numbered([row.name for row in classes], "classes", "name")
    site_of = _numbered([row.id for row in sites], "sites", "id")
    for node in nodes:
        if node.gpu_class not in class_of:
            raise Invalid(f"node {node.id} has unknown class {node.gpu_class!r}",
                          field="node_class")  # fmt: skip
        if node.site not in site_of:
            raise Invalid(f"node {node.id} has unknown site {node.site!r}", field="node_site")
    columns = _columns(NODES, "node_", nodes)
    columns["node_class"] = column("node_class", [class_of[node.gpu_class] for node in nodes])
    columns["node_site"] = column("node_site", [site_of[node.site] for node in nodes])
    places = _columns(PLACES, "site_", sites)
    return assemble(orders, columns | places, classes, seed=seed, params=params)


def assemble(
    orders: Sequence[Order],
    supply: Mapping[str, Array],
    classes: Sequence[ClassRow],
    *,
    seed: int,
    params: Params = Params(),
) -> Book:
    """`build`, of nodes and sites that are arrays by name already, for want of time."""
    class_of = _numbered([row.name for row in classes], "classes", "name")
    limits = np.zeros((len(orders), len(classes)), "<f8")
    for index, order in enumerate(orders):
        for name, limit in order.limits.items():
            if name in class_of:
                limits[index, class_of[name]] = limit
    return Book(
        job_limit=limits,
        class_nvlink=column("class_nvlink", [row.nvlink for row in classes]),
        params=replace(params, seed=seed),
        **_columns(JOBS, "job_", orders),
        **supply,
    )


def _numbered(names: Sequence[Hashable], field: str, what: str) -> dict[Hashable, int]:
    numbers = {name: index for index, name in enumerate(names)}
    if len(numbers) != len(names):
        raise Invalid(f"two {field} have the same {what}", field=field)
    return numbers


def reordered(book: Book, jobs: Ints, nodes: Ints) -> Book:
    """The same book with its jobs and nodes in another order, or some of them only."""
    classes, sites = np.arange(len(book.class_nvlink)), np.arange(len(book.site_region))
    return rearranged(book, jobs, nodes, classes, sites)


def renumbered(book: Book, classes: Ints, sites: Ints) -> Book:
    """The same book with its classes and sites in another order."""
    return rearranged(book, np.arange(book.jobs), np.arange(book.nodes), classes, sites)


def rearranged(book: Book, jobs: Ints, nodes: Ints, classes: Ints, sites: Ints) -> Book:
    """The same book with all in another order, or with some only of its jobs and nodes."""
    picked = {name: getattr(book, name)[jobs] for name in JOBS}
    picked |= {name: getattr(book, name)[nodes] for name in NODES}
    picked |= {name: getattr(book, name)[sites] for name in PLACES if name.startswith("site_")}
    return replace(
        book,
        **picked
        | {
            "job_limit": np.ascontiguousarray(picked["job_limit"][:, classes]),
            "class_nvlink": book.class_nvlink[classes],
            "node_class": np.argsort(classes)[picked["node_class"]].astype("<i2"),
            "node_site": np.argsort(sites)[picked["node_site"]].astype("<i4"),
        },
    )


def save(book: Book, path: Path) -> None:
    """Writes the book as `.npz`."""
    arrays.write(path, book.as_arrays())


def load(path: Source) -> Book:
    """Reads a book; raises Invalid naming the array that is unknown, missing or wrong."""
    return of_arrays(arrays.read(path, SCHEMA))


def of_arrays(named: dict[str, Array]) -> Book:
    """From all arrays by their names. Raises Invalid."""
    params = Params.from_json(str(named.pop("params")))
    return Book(**named, params=params)


def digest(book: Book) -> str:
    """sha256 in hex: the same book, the same digest, on any machine."""
    return arrays.digest(book.as_arrays())


def _columns(schema: Schema, prefix: str, rows: Sequence[Any]) -> dict[str, Any]:
    """The arrays that are a row's own attribute, by name."""
    made_elsewhere = {"job_limit", "node_class", "node_site"}
    return {
        name: column(name, [getattr(row, name.removeprefix(prefix)) for row in rows])
        for name in schema
        if name.startswith(prefix) and name not in made_elsewhere
    }


def column(name: str, values: Sequence[float]) -> Array:
    """The named array. Raises Invalid where a value doesn't fit the array's type (numpy would wrap or refuse)."""
    told = SCHEMA[name]
    try:
        return np.array(values, told.dtype).reshape(len(values))
    except (OverflowError, ValueError, TypeError) as error:
        raise Invalid(f"{name} can't hold its values: {error}", field=name) from error


def _check_relations(book: Book) -> None:
    """What ties arrays to each other."""
    for name in ("job_id", "node_id"):
        ids = np.sort(getattr(book, name))
        if (ids[1:] == ids[:-1]).any():
            raise Invalid(f"{name} holds a number twice", field=name)
    if (book.job_gpus_max < book.job_gpus_min).any():
        raise Invalid("job_gpus_max lies below job_gpus_min", field="job_gpus_max")
    for name, known in (("node_class", book.class_nvlink), ("node_site", book.site_region)):
        if len(known) <= getattr(book, name).max(initial=-1):
            raise Invalid(f"{name} points past the last of {len(known)}", field=name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
