"""What a waiting job is told: why it waits, and what would place it."""

from datetime import datetime

from msgspec import Struct


class Helps(Struct, frozen=True):
    """One change that alone would place a job, by what is free and the last prices; a `term` of
    "wait" changes nothing, and `to` is then a moment. `cost_micros`, for as much work as all its
    GPUs do in an hour on its best class, tells which is the cheapest."""

    term: str
    to: str
    gpu_class: str
    gpus: int
    level: str
    hourly_micros: int
    cost_micros: int
    words: str


class Told(Struct, frozen=True):
    """Why a job waits, and what would place it: waiting first, then the cheapest."""

    why: str
    words: str
    changes: list[Helps] = []


class Held(Struct, frozen=True):
    """GPUs that others leave for a waiting job, held until then at the latest; `free`: all of them
    are, so that the next round offers them to it."""

    gpus: int
    until: datetime
    free: bool
