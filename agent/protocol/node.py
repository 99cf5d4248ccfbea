"""What a node is: its devices, its training environment and its sandbox, as it finds them."""

from typing import Annotated, Literal

from msgspec import Meta

from agent.protocol.wire import Count, Name, Sha256, Text, Wire


class Device(Wire, frozen=True, kw_only=True):
    """One thing to let: a GPU, or, on a machine without one, its processor (`kind` cpu)."""

    uuid: Name
    kind: Literal["gpu", "cpu"]
    index: Count
    name: Name
    memory_bytes: Count
    watts: Count = 0
    """Its power limit, or 0 where nothing tells."""
    cores: Count = 0
    """Of a processor: the cores that are let."""


class Environment(Wire, frozen=True, kw_only=True):
    """The training environment that the node offers to jobs."""

    python: Name
    packages: dict[str, str]
    """Name → version of what training scripts ask for (torch, transformers, …)."""
    lock: Sha256
    """Over all installed packages and versions, sorted."""


class Sandbox(Wire, frozen=True, kw_only=True):
    """What the agent found when it attacked its own sandbox."""

    rung: Name
    checks: Count
    held: Count
    harmful: Count
    weaker: list[Text] = []
    """What this rung leaves open, in words."""


class Inventory(Wire, frozen=True, kw_only=True):
    """The node as it finds itself."""

    hostname: Name
    system: Name
    agent_version: Name
    cpu_model: Name
    cpu_cores: Count
    memory_bytes: Count
    disk_bytes: Count
    devices: Annotated[list[Device], Meta(min_length=1, max_length=16)]
    nvlink: bool
    driver: Annotated[str, Meta(max_length=60)] = ""
    measures_power: bool
    environment: Environment
    sandbox: Sandbox
    lan_address: Annotated[str, Meta(max_length=15)] = ""
    """By which (IPv4) the site's other nodes reach it; empty: it takes no part in gangs of several
    nodes, and `python -m agent doctor` says why."""
    egress: bool = False
    """Whether the owner lets jobs reach the names that they list."""
    registries: Annotated[list[Name], Meta(max_length=50)] = []
    """From where images are fetched for jobs; empty: jobs see the node's own system."""
    builds: bool = False
    """Whether jobs' own environments are built here, from the package index."""
