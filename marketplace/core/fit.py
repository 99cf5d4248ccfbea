"""Whether a job may run on an offer, and if not, why: one rule for quotes, rounds and pages."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from marketplace.core.hardware import Level, is_cpu

_GIB: Final = 2**30


@dataclass(frozen=True)
class Wants:
    """What a job asks of each node. Ids are opaque text."""

    org: str
    gpus: int
    """The least that it runs on."""
    gpus_max: int
    level: int
    memory_bytes: int
    """On each GPU."""
    memory_cpu_bytes: int
    """On a processor."""
    disk_bytes: int
    trust: int
    tier: int
    regions: frozenset[str]
    """Empty is anywhere."""
    environment: str
    """Lock of the training environment it needs; empty takes any."""
    runs_code: bool
    """Whether it brings the buyer's own code."""
    ray: bool
    """Whether a recipe of ours runs on several GPUs."""
    avoid: frozenset[str]
    limits: Mapping[str, int]
    """GPU class → most micros per GPU-hour."""
    egress: bool = False
    """Whether it lists names that it must reach."""
    secrets_trust: int = 3
    """The worst site that may see its secrets; 3 where it has none."""
    python: str = ""
    """Minor version that its own packages are for; empty: it brings none."""
    torch: str = ""
    """Version of torch that its packages leave to the node."""

    job: str = ""
    """Its id, once it is a job."""
    registry: str = ""
    """From where its image is fetched; empty: it runs on the node's own system."""

    @cached_property
    def alike(self) -> Hashable:
        """The same of two jobs that suit the same machines, wherever these are and however large; but
        for what is held for one of them, or is only its own org's."""
        return (
            self.memory_bytes, self.memory_cpu_bytes, self.disk_bytes, self.environment,
            self.runs_code, self.ray, self.avoid, self.egress, self.python, self.torch,
            self.registry, frozenset(self.limits),
        )  # fmt: skip

    def memory_on(self, gpu_class: str) -> int:
        """Bytes needed on a device of this class."""
        return self.memory_cpu_bytes if is_cpu(gpu_class) else self.memory_bytes


@dataclass(frozen=True)
class Stands:
    """What an offer is, as a job sees it. `ask` is gross, micros per GPU-hour."""

    node: str
    org: str
    gpu_class: str
    gpus: int
    free: int
    memory_bytes: int
    disk_bytes: int
    trust: int
    tier: int
    region: str
    environment: str
    scripts: bool
    gangs: bool
    """Whether it can be one of several nodes of a job."""
    ray: bool
    """Whether its training environment has Ray."""
    own_org_only: bool
    ask: int
    egress: bool = False
    """Whether the owner lets jobs reach the names that they list."""
    builds: bool = False
    """Whether jobs' own environments are built there."""
    python: str = ""
    torch: str = ""
    registries: frozenset[str] = frozenset()
    """From where images are fetched for jobs."""
    held_for: str = ""
    """The one job that is offered this; empty: anybody is."""


def misfit(wants: Wants, stands: Stands) -> str:
    """Why the job can't have this offer now, in words; empty if it can.

    Who may run what comes first, then what the machine is, then what is free, then the price.
    """
    return _not_allowed(wants, stands) or _not_suited(wants, stands) or _not_free(wants, stands)


def suits(wants: Wants, stands: Stands) -> bool:
    """Whether the machine would do for the job, were it free and cheap enough."""
    return not (_not_allowed(wants, stands) or _not_suited(wants, stands))


def _not_allowed(wants: Wants, stands: Stands) -> str:
    if stands.own_org_only and stands.org != wants.org:
        return "only for its owner's own jobs"
    if stands.held_for and stands.held_for != wants.job:
        return "held for another job, for which somebody has made room"
    if wants.runs_code and not stands.scripts:
        return "the owner lets no strangers' code run, only recipes"
    if wants.egress and not stands.egress:
        return "the owner lets jobs reach nothing outside, and this one lists names to reach"
    if stands.trust > wants.trust:
        return "the site is less trusted than the job demands"
    if stands.trust > wants.secrets_trust:
        return "the site is less trusted than the job's secrets allow"
    if wants.regions and stands.region not in wants.regions:
        return f"in region {stands.region}"
    return ""


def _not_suited(wants: Wants, stands: Stands) -> str:
    if stands.gpu_class not in wants.limits:
        return f"{stands.gpu_class} is not among the accepted classes"
    wanted = wants.memory_on(stands.gpu_class)
    if stands.memory_bytes < wanted:
        needed, has = wanted / _GIB, stands.memory_bytes / _GIB
        return f"needs {needed:.1f} GiB on each GPU, it has {has:.1f}"
    if stands.disk_bytes < wants.disk_bytes:
        return f"needs {wants.disk_bytes / _GIB:.0f} GiB of disk, it has less"
    if stands.tier > wants.tier:
        return "the node is less proven than the job demands"
    if why := _no_environment(wants, stands):
        return why
    if wants.ray and not stands.ray:
        return "its training environment has no Ray, which recipes on several GPUs need"
    if stands.node in wants.avoid:
        return "it has failed this job before"
    if wants.level == Level.NODE and stands.gpus < wants.gpus:
        return f"needs {wants.gpus} GPUs in one node, it has {stands.gpus}"
    if stands.gpus < wants.gpus and not stands.gangs:
        return "it takes no part in jobs of several nodes"
    return ""


def _no_environment(wants: Wants, stands: Stands) -> str:
    if wants.registry:
        known = wants.registry in stands.registries
        return "" if known else f"no images from {wants.registry} are run there"
    if wants.python:
        return _no_packages(wants, stands)
    if wants.environment and stands.environment != wants.environment:
        return "another training environment"
    return ""


def _no_packages(wants: Wants, stands: Stands) -> str:
    if not stands.builds:
        return "no environments of jobs' own are built there"
    if stands.python != wants.python:
        return f"the packages are for Python {wants.python}, it has {stands.python or 'none'}"
    if wants.torch and stands.torch != wants.torch:
        return f"the packages go with torch {wants.torch}, it has {stands.torch or 'none'}"
    return ""


def _not_free(wants: Wants, stands: Stands) -> str:
    alone = wants.level == Level.NODE or not stands.gangs
    if not stands.free or (alone and stands.free < wants.gpus):
        return "its GPUs are let or held for another"
    if stands.ask > wants.limits[stands.gpu_class]:
        return "its price is over the limit"
    return ""
