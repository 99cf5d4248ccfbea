"""What a buyer asks for, as one checked value: the same from a form, the API, the CLI.

Only the shape is checked here; whether the dataset exists or the recipe's parameters make sense
is said by `buyers.services`, which looks.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from marketplace.core.errors import Invalid
from marketplace.core.hardware import REGIONS, Level, Tier, Trust
from marketplace.core.money import MAX_PRICE, parse_amount
from marketplace.core.text import require_plain

GIB: Final = 2**30
_KNOWN: Final = frozenset(
    "name recipe parameters base dataset script mix other third gpus gpus_max level memory_gib "
    "disk_gib regions trust tier kappa limit limits budget deadline hours environment seed egress "
    "packages image secrets service".split()
)
PROTECTED: Final = "protected"
INTERRUPTIBLE: Final = "interruptible"
SERVICES: Final = {
    PROTECTED: "Never displaced by the market",
    INTERRUPTIBLE: "Makes room for a job that gains more by it",
}
"""Whether the market may displace a job's leases, and what that means."""
NO_PACKAGES: Final = "none"
MAX_EGRESS: Final = 32
MAX_SECRETS: Final = 16
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
# At least one dot, and no number at the end: names of the internet, not addresses.
_HOST: Final = re.compile(
    rf"\.?(?=.{{1,253}}$)({_LABEL}\.)+(?![0-9]+(:|$)){_LABEL}(:[1-9][0-9]{{0,4}})?"
)
# What a job may read, each by its id or name.
_INPUTS: Final = ("base", "dataset", "script", "mix", "other", "third")


@dataclass(frozen=True)
class JobRequest:
    """A job as wanted. Money in micros, memory in bytes; 0 or empty means "you say"."""

    name: str
    recipe: str
    budget_micros: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    """Id or public name of an artifact to start from."""
    dataset: str = ""
    """Id of a dataset version, or `name`, or `name@version`."""
    script: str = ""
    """The same, for the user's own code."""
    mix: str = ""
    """The same, for what is blended into the training's rows."""
    other: str = ""
    """Id or public name of a second model: the teacher, or what is added to the base."""
    third: str = ""
    """Of a third one, merged with the second."""
    gpus_min: int = 1
    gpus_max: int = 1
    level: Level = Level.NODE
    memory_bytes: int = 0
    """Needed on each GPU; 0 = estimated from recipe and base."""
    disk_bytes: int = 20 * GIB
    regions: tuple[str, ...] = ()
    trust: Trust = Trust.COMMUNITY
    tier: Tier = Tier.UNPROVEN
    kappa: float = 0.0
    limits: Mapping[str, int] = field(default_factory=dict)
    """GPU class → most micros per GPU-hour; empty = any class, capped by the budget alone."""
    limit_micros: int = 0
    """One limit for every class that `limits` does not name; 0 = none."""
    deadline: datetime | None = None
    hours: float = 0.0
    """How long the buyer thinks it runs; only scripts need it."""
    environment: str = ""
    """The lock of the training environment that it needs; empty takes the node's own."""
    seed: int = 0
    egress: tuple[str, ...] = ()
    """Names that it must reach, like huggingface.co or .wandb.ai (with all below it)."""
    secrets: tuple[str, ...] = ()
    """Names of the org's secrets that it is given as variables."""
    service: str = PROTECTED
    """One of SERVICES."""
    image: str = ""
    """The container image that its script runs in, by tag or digest; `buyers.images` finds the
    digest. Empty: it sees the node's own system."""
    packages: str = ""
    """SHA-256 of the lock of its own packages; empty: as its project's files say, which
    `buyers.packages` resolves; "none": it runs in the node's own environment."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, as kept with a quote."""
        data = asdict(self)
        data["deadline"] = self.deadline.isoformat() if self.deadline else None
        data["regions"] = list(self.regions)
        data["egress"] = list(self.egress)
        data["secrets"] = list(self.secrets)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "JobRequest":
        """The inverse of `as_json`."""
        deadline = data["deadline"]
        return cls(
            **{
                **data,
                "deadline": datetime.fromisoformat(deadline) if deadline else None,
                "regions": tuple(data["regions"]),
                "egress": tuple(data.get("egress", ())),
                "secrets": tuple(data.get("secrets", ())),
                "level": Level(data["level"]),
                "trust": Trust(data["trust"]),
                "tier": Tier(data["tier"]),
            }
        )


def parse(raw: Mapping[str, Any]) -> JobRequest:
    """A JobRequest from what came over the wire; raises Invalid naming the field at fault.

    Amounts are decimal strings in the market's currency ("2.50"), sizes GiB, `gpus` the least
    and `gpus_max` the most, `limit` one limit for all classes, `limits` one for each.
    """
    require_plain(raw)
    _require_known(raw)
    gpus = _integer(raw, "gpus", 1, low=1, high=1024)
    return JobRequest(
        name=_text(raw, "name", most=100) or _text(raw, "recipe", most=30) or "job",
        recipe=_text(raw, "recipe", most=30, needed=True),
        budget_micros=parse_amount(raw.get("budget", ""), field="budget"),
        parameters=_mapping(raw, "parameters"),
        **{name: _text(raw, name, most=140) for name in _INPUTS},
        gpus_min=gpus,
        gpus_max=_integer(raw, "gpus_max", gpus, low=gpus, high=1024),
        level=_choice(raw, "level", Level, Level.NODE),
        memory_bytes=round(_number(raw, "memory_gib", 0.0, low=0, high=100_000) * GIB),
        disk_bytes=round(_number(raw, "disk_gib", 20.0, low=0.1, high=100_000) * GIB),
        regions=_regions(raw.get("regions") or ()),
        trust=_choice(raw, "trust", Trust, Trust.COMMUNITY),
        tier=_choice(raw, "tier", Tier, Tier.UNPROVEN),
        kappa=_number(raw, "kappa", 0.0, low=0, high=1),
        limits=_limits(raw),
        limit_micros=_limit(raw),
        deadline=_moment(raw, "deadline"),
        hours=_number(raw, "hours", 0.0, low=0, high=10_000),
        environment=_text(raw, "environment", most=64),
        seed=_integer(raw, "seed", 0, low=0, high=2**31 - 1),
        egress=_egress(raw.get("egress") or ()),
        secrets=_names(raw.get("secrets") or ()),
        service=_service(raw),
        image=_text(raw, "image", most=200),
        packages=_text(raw, "packages", most=64),
    )


def _require_known(raw: Mapping[str, Any]) -> None:
    unknown = sorted(set(raw) - _KNOWN)
    if unknown:
        raise Invalid(f"a job has no field {unknown[0]!r}; it has: {', '.join(sorted(_KNOWN))}",
                      field=unknown[0])  # fmt: skip


def _text(raw: Mapping[str, Any], name: str, *, most: int, needed: bool = False) -> str:
    value = raw.get(name) or ""
    if not isinstance(value, str):
        raise Invalid(f"{name} must be text, not {type(value).__name__}", field=name)
    value = value.strip()
    if needed and not value:
        raise Invalid(f"{name} is missing", field=name)
    if len(value) > most:
        raise Invalid(f"{name} is at most {most} characters long", field=name)
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise Invalid(f"{name} must not contain control characters", field=name)
    return value


def _number(raw: Mapping[str, Any], name: str, default: float, *, low: float, high: float) -> float:
    value = raw.get(name)
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise Invalid(f"{name} must be a number from {low:g} to {high:g}, not {value!r}",
                      field=name)  # fmt: skip
    return number


def _integer(raw: Mapping[str, Any], name: str, default: int, *, low: int, high: int) -> int:
    number = _number(raw, name, default, low=low, high=high)
    if number != int(number):
        raise Invalid(f"{name} must be a whole number, not {raw[name]!r}", field=name)
    return int(number)


def _mapping(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Invalid(f"{name} must be an object of named values", field=name)
    return dict(value)


def _limits(raw: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: parse_amount(value, field=f"limits.{name}", most=MAX_PRICE)
        for name, value in _mapping(raw, "limits").items()
    }


def _limit(raw: Mapping[str, Any]) -> int:
    if raw.get("limit") in (None, ""):
        return 0
    return parse_amount(raw["limit"], field="limit", most=MAX_PRICE)


def _service(raw: Mapping[str, Any]) -> str:
    service = _text(raw, "service", most=20) or PROTECTED
    if service not in SERVICES:
        raise Invalid(f"service is one of {', '.join(SERVICES)}", field="service")
    return service


def _choice(raw: Mapping[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    """A member by its lowercase name or number."""
    value = raw.get(name)
    if value is None or value == "":
        return default
    for member in kind:
        if value == member.name.lower() or (value == member.value and value is not True):
            return member
    names = ", ".join(member.name.lower() for member in kind)
    raise Invalid(f"{name} must be one of {names}, not {value!r}", field=name)


def _regions(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise Invalid("regions must be a list of region names", field="regions")
    for name in names:
        if name not in REGIONS:
            raise Invalid(f"there is no region {name!r}; there are {', '.join(REGIONS)}",
                          field="regions")  # fmt: skip
    return tuple(dict.fromkeys(names))


def _egress(names: object) -> tuple[str, ...]:
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise Invalid("egress must be a list of host names", field="egress")
    found = tuple(dict.fromkeys(name.strip().lower() for name in names))
    if len(found) > MAX_EGRESS:
        raise Invalid(f"a job reaches at most {MAX_EGRESS} names", field="egress")
    for name in found:
        port = name.partition(":")[2] or "443"
        if not _HOST.fullmatch(name) or int(port) > 65_535:
            raise Invalid(
                f"egress takes host names, like huggingface.co, .wandb.ai (with all below it) or "
                f"pypi.example:8443, not {name[:80]!r}",
                field="egress",
            )
        if port not in ("80", "443") and int(port) < 1024:
            raise Invalid(
                f"{name[:80]!r}: of the ports below 1024 nodes open only 80 and 443",
                field="egress",
            )
    return found


def _names(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise Invalid("secrets must be a list of names, like HF_TOKEN", field="secrets")
    if len(names) > MAX_SECRETS:
        raise Invalid(f"a job is given at most {MAX_SECRETS} secrets", field="secrets")
    return tuple(dict.fromkeys(names))


def _moment(raw: Mapping[str, Any], name: str) -> datetime | None:
    value = raw.get(name)
    if value in (None, ""):
        return None
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Invalid(f"{name} must be a time with its zone, like 2026-12-01T18:00:00+00:00",
                      field=name)  # fmt: skip
    return moment
