"""The words for what the engine finds: why not here, why it waits, what would help, why it idles."""

from typing import Final

from marketplace.core.hardware import REGIONS, Tier, Trust
from marketplace.core.money import MICRO, format_amount
from scheduler.matching.cells import Names
from scheduler.matching.explain import Change, Term, Waiting, Why
from scheduler.matching.idling import Idle, Lost
from scheduler.matching.placing import NODE

LEVELS: Final = ("in one node", "on one site", "over several sites")


def trust(number: float) -> str:
    """A site's."""
    return Trust(int(number)).name.lower()


def tier(number: float) -> str:
    """A node's."""
    return Tier(int(number)).name.lower()


def region(number: float) -> str:
    """By its number in the book."""
    return REGIONS[int(number)] if number < len(REGIONS) else f"region-{number:.0f}"


def unmet(term: Term, *, gpu_class: str, has: int = 0, wants: int = 0) -> str:
    """Why a node is not for a job, to its buyer: the node `has` this trust or tier."""
    if term is Term.LIMIT:
        return f"{gpu_class} has too little memory, or no limit of yours"
    if term is Term.REGION:
        return "it stands in a region that you don't accept"
    if term is Term.TRUST:
        return f"its site is {trust(has)}; you accept {trust(wants)} or better"
    if term is Term.TIER:
        return f"it is {tier(has)}; you accept {tier(wants)} or better"
    return "it offers no window that is long enough"


def why_waits(found: Waiting, names: Names) -> str:
    """Why a job waits, in a sentence without its stop."""
    where = names.classes[found.gpu_class] if found.gpu_class >= 0 else ""
    price, limit = money(found.price), money(found.limit)
    if found.why is Why.UNFIT:
        return "no node on offer fits its terms"
    if found.why is Why.APART:
        return _apart(found)
    if found.why is Why.DEAR:
        if found.price > found.limit:
            return f"{where} costs {price} a GPU-hour, and its limit is {limit}"
        if price == limit:
            return f"{where} costs {price} a GPU-hour, which is just its limit"
        return (
            f"{where} costs {price} a GPU-hour, and its limit of {limit} is worth less there:"
            " a gang loses speed, and failures cost time"
        )
    return f"its limit on {where} covers the price of {price}, but {_no_room(found)}"


def what_helps(change: Change, names: Names) -> str:
    """A change, and the place that it would bring, in a sentence without its stop."""
    where = names.classes[change.gpu_class]
    place = f"{change.gpus} × {where}" + (f" {LEVELS[change.level]}" if change.gpus > 1 else "")
    cents = money(round(change.hourly, 2))
    return f"{_change(change, where)}: {place}, {cents} an hour"


def why_idles(found: Idle) -> str:
    """Why a node was not let, in a sentence without its stop."""
    if found.why is Lost.QUIET:
        return "no job waited"
    if found.why is Lost.UNWANTED:
        others = _LEFT_OUT[found.term or Term.LIMIT]
        waiting = _jobs(found.jobs, "waiting job", "waiting jobs")
        return f"none of {waiting} could run on it; {found.left_out} {others}"
    if found.why is Lost.SMALL:
        return f"the jobs that could run on it need {found.needed} GPUs or more together"
    if not found.price:
        return "nothing like it was let, so there is no price to go by"
    like = "its like was let" if found.own_cell else "others of its class were let"
    if found.why is Lost.DEAR:
        return f"its ask was above what {like} for, {money(found.price)}"
    return f"{like} for {money(found.price)}, and more was free than wanted"


def money(amount: float) -> str:
    """USD, as exactly as a price is."""
    return format_amount(round(amount * MICRO))


_LEFT_OUT: Final = {
    Term.LIMIT: "want another GPU class, or more than it has",
    Term.REGION: "want another region",
    Term.TRUST: "want a site that is trusted more",
    Term.TIER: "want a node that is better proven",
    Term.WINDOW: "want a longer window",
}


def _jobs(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _apart(found: Waiting) -> str:
    if found.together >= found.gpus:
        return "where it could run, failures would cost it more than the run is worth"
    where = "node" if found.level == NODE else "site"
    return (
        f"it needs {found.gpus} GPUs {LEVELS[found.level]}, and no {where} that it accepts has"
        f" more than {found.together} free"
    )


def _no_room(found: Waiting) -> str:
    if found.gpus == 1 or not found.left:
        return "all that it accepts at that price is let to others"
    return (
        f"of the {found.left} GPUs left to it at most {found.together} are {LEVELS[found.level]},"
        f" and it needs {found.gpus}: the price is one for all, and a gang is placed whole or not"
        " at all"
    )


def _change(change: Change, where: str) -> str:
    if change.term is Term.LIMIT:
        return f"raise the limit on {where} to {money(change.to)}"
    if change.term is Term.GPUS:
        return f"do with {_jobs(int(change.to), 'GPU', 'GPUs')}"
    if change.term is Term.LEVEL:
        return "accept a gang over several nodes of one site"
    if change.term is Term.REGION:
        return f"accept region {region(change.to)}"
    if change.term is Term.TRUST:
        return f"accept {trust(change.to)} sites"
    if change.term is Term.TIER:
        return f"accept {tier(change.to)} nodes"
    return "do without a long window"
