"""The job page's socket, as a browser has it: through uvicorn, with the session's cookie."""

import asyncio
import contextlib
import json

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from buyers import consumers
from buyers.models import Job, MetricPoint
from marketplace import telemetry
from marketplace.core.ids import uuid7
from marketplace.models import Member
from tests.buyers.conftest import client_of

SOON = 30
"""Seconds that a message may take on the busiest machine; none is judged by its pace."""


@contextlib.asynccontextmanager
async def page(site, org, job, **changes):
    """The socket of an open job page of a member of `org`."""
    client = await sync_to_async(client_of)(org)
    cookie = client.cookies[settings.SESSION_COOKIE_NAME].value
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}"}
    url = f"ws{site.removeprefix('http')}/buy/jobs/{job}/socket"
    async with connect(
        url, additional_headers=headers, origin=changes.pop("origin", site), **changes
    ) as wire:
        yield wire


async def hear(wire, until):
    """Messages up to the first one for which `until` holds."""
    heard = []
    async with asyncio.timeout(SOON):
        while not heard or not until(heard[-1]):
            heard.append(await wire.recv())
    return heard


async def ring(job):
    await sync_to_async(telemetry.job_changed)(job.pk)


async def test_a_page_is_told_when_a_round_changes_many_jobs(site, buyer, ran, monkeypatch):
    monkeypatch.setattr(consumers, "LOOK_S", 3600.0)
    others = [uuid7() for _ in range(200)]
    async with page(site, buyer, ran.job.pk) as wire:
        await hear(wire, lambda text: text.startswith("{"))
        await Job.objects.filter(pk=ran.job.pk).aupdate(step=3)
        telling = asyncio.create_task(hear(wire, lambda text: "step 3 of 4" in text))
        while not telling.done():
            # Again and again: the page may not have begun to listen.
            await sync_to_async(telemetry.job_changed)(*others, ran.job.pk)
            await asyncio.wait([telling], timeout=0.2)
        await telling


async def test_an_open_page_gets_all_of_it_and_then_what_changes(site, buyer, ran):
    async with page(site, buyer, ran.job.pk) as wire:
        *_, first, points = await hear(wire, lambda text: text.startswith("{"))
        for name in ("state", "cost", "where", "checkpoints", "receipt", "log", "story"):
            assert f'id="job-{name}"' in first
        assert [point["step"] for point in json.loads(points)["points"]] == [0, 1, 2]

        await Job.objects.filter(pk=ran.job.pk).aupdate(step=3)
        await ring(ran.job)
        (changed,) = await hear(wire, lambda text: "step 3 of 4" in text)
        assert 'id="job-story"' not in changed, "what did not change is not sent"

        await MetricPoint.objects.acreate(
            job=ran.job, epoch=ran.lease.epoch, step=3, values={"loss": 2.0}, at=timezone.now()
        )
        await ring(ran.job)
        *_, more = await hear(wire, lambda text: text.startswith("{"))
        assert [point["step"] for point in json.loads(more)["points"]] == [3]


async def test_many_bells_are_few_messages(site, buyer, ran, monkeypatch):
    monkeypatch.setattr(consumers, "PAUSE_S", 2.0)
    async with page(site, buyer, ran.job.pk) as wire:
        await hear(wire, lambda text: text.startswith("{"))
        for step in range(100):
            await Job.objects.filter(pk=ran.job.pk).aupdate(step=step, total_steps=100)
            await ring(ran.job)
        heard = await hear(wire, lambda text: "step 99 of 100" in text)
        assert len(heard) < 20


async def test_a_page_whose_bell_was_lost_looks_by_itself(site, buyer, ran, monkeypatch):
    monkeypatch.setattr(consumers, "LOOK_S", 0.2)
    async with page(site, buyer, ran.job.pk) as wire:
        await hear(wire, lambda text: text.startswith("{"))
        await Job.objects.filter(pk=ran.job.pk).aupdate(step=3)
        await hear(wire, lambda text: "step 3 of 4" in text)


@pytest.mark.parametrize("whose", ["theirs", "nobody's"])
async def test_to_a_stranger_there_is_no_such_job(site, stranger, ran, whose):
    job = ran.job.pk if whose == "theirs" else uuid7()
    with pytest.raises(InvalidStatus) as refused:
        async with page(site, stranger, job):
            pass
    assert refused.value.response.status_code == 404


async def test_nor_to_somebody_who_has_not_logged_in(site, ran):
    url = f"ws{site.removeprefix('http')}/buy/jobs/{ran.job.pk}/socket"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, origin=site):
            pass
    assert refused.value.response.status_code == 404


async def test_another_sites_page_can_not_open_it(site, buyer, ran):
    with pytest.raises(InvalidStatus) as refused:
        async with page(site, buyer, ran.job.pk, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_who_leaves_the_org_sees_no_more_of_it(site, buyer, ran):
    async with page(site, buyer, ran.job.pk) as wire:
        await hear(wire, lambda text: text.startswith("{"))
        await Member.objects.filter(org=buyer).adelete()
        await ring(ran.job)
        with pytest.raises(ConnectionClosed):
            await hear(wire, lambda text: False)
