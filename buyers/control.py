"""What a buyer does that the next round should know of at once: the engine's verb, then the bell.

Beside the views and the API, which both call it, because a service may not ring.
"""

from datetime import datetime

from django.contrib.auth.models import User

from buyers import datasets, fetching, images, packages
from buyers.hub_models import Fetch
from buyers.models import Dataset, Job, Quote
from marketplace.core.specs import JobRequest
from marketplace.models import Org
from scheduler import changes, jobs, quoting, tasks


def resolved(org: Org, request: JobRequest, *, now: datetime) -> JobRequest:
    """The request with its image named by digest, or its packages by their lock. It takes the
    network, and so no transaction."""
    return packages.resolved(org, images.resolved(request, now=now), now=now)


def quote(org: Org, request: JobRequest, *, now: datetime) -> Quote:
    """`scheduler.quoting.quote`, of a request that is resolved first."""
    return quoting.quote(org, resolved(org, request, now=now), now=now)


def submit(org: Org, request: JobRequest, *, by: User, now: datetime) -> Job:
    """`scheduler.jobs.submit`, resolved first; a round is rung for."""
    job = jobs.submit(org, resolved(org, request, now=now), by=by, now=now)
    tasks.ring(tasks.clear_market)
    return job


def resume(job: Job, *, by: User, now: datetime, budget: str = "") -> Job:
    """`scheduler.jobs.resume`; a round is rung for."""
    job = jobs.resume(job, by=by, now=now, budget=budget)
    tasks.ring(tasks.clear_market)
    return job


def accept(job: Job, *, term: str, to: str, gpu_class: str, by: User, now: datetime) -> Job:
    """`scheduler.changes.accept`; a round is rung for."""
    job = changes.accept(job, term=term, to=to, gpu_class=gpu_class, by=by, now=now)
    tasks.ring(tasks.clear_market)
    return job


def commit(dataset: Dataset, *, now: datetime) -> Dataset:
    """`buyers.datasets.commit`; if it is left to a worker, one is rung for."""
    dataset = datasets.commit(dataset, now=now)
    if dataset.state == "checking":
        tasks.ring(tasks.check_datasets)
    return dataset


def add_base(
    org: Org, *, hub: str, repo: str, revision: str, token: str, right: str, by: User, now: datetime
) -> Fetch:
    """`buyers.fetching.ask`; a worker is rung for."""
    fetch = fetching.ask(
        org, hub=hub, repo=repo, revision=revision, token=token, right=right, by=by, now=now
    )
    tasks.ring(tasks.fetch_bases)
    return fetch
