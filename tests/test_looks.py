"""Pages as people see them: wide and narrow, light and dark, by eye, keyboard and screen reader.

One market is laid out for all of them; with SCREENSHOTS set to a folder, each look is kept there.
"""

import os
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path

import pytest_asyncio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import transaction
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone
from playwright.async_api import Page, async_playwright

from buyers.models import Dataset, Job, Quote
from marketplace.core import specs
from marketplace.core.money import MICRO
from marketplace.models import Org
from scheduler import archive, clearing, metering, proving, quoting
from scheduler.models import Assignment, Hold, Lease, Round
from scheduler.record_models import Record
from tests import debian, world
from tests.buyers.conftest import client_of, folder, site  # noqa: F401 (a fixture, by its name)
from tests.buyers.test_browser import FLAGS

A100, H100, H200 = "a100-80", "h100-sxm", "h200-sxm"
MAIN = [{"path": "main.py", "bytes": 1, "sha256": "0" * 64}]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
BROKEN = """axe.run({resultTypes: ["violations"]}).then(found => found.violations.map(
    each => `${each.id}: ${each.nodes.map(node => node.html.slice(0, 160)).join(" | ")}`))"""
CUT = """[...document.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => box.textContent.trim().slice(0, 60))"""


UNFOLD = """document.querySelectorAll("main details").forEach(each => each.open = true)"""


@transaction.atomic
def market() -> tuple[Org, dict[str, str], str]:
    """Who buys and supplies, the pages' addresses, and their session: a job that runs, one that
    waits, a node that idles, another that opens later; and a round that is released, with enough
    orgs in it for curves."""
    now = timezone.now()
    world.listening(now)
    us = world.org("Acme Models", now=now, wallet=100 * MICRO)
    rival = world.org("Laboratory of the University", now=now)
    world.agent(rival, now=now, ask=1 * MICRO)
    soon = (now.weekday() * 1440 + now.hour * 60 + now.minute + 120) % (7 * 1440 - 60)
    world.agent(rival, now=now, ask=1_500_000, windows=[[soon, soon + 60]])
    idle = world.agent(us, now=now, ask=3 * MICRO, name="a-node-with-a-rather-long-name").node
    runs = world.job(us, now=now, queued_at=now - timedelta(hours=1))
    waits = world.job(us, now=now, name="Waiting for a better price", limits={H100: 2 * MICRO})
    for number in range(5):
        each = world.org(f"Org {number} of a curve", now=now, wallet=100 * MICRO)
        world.agent(each, now=now, gpu_class=A100, ask=(4 + number) * MICRO // 4)
        world.job(each, now=now, limits={A100: (12 + number) * MICRO // 4})
    assert clearing.clear_market(now=now) == 6
    archive.publish()
    archive.release(now=now + timedelta(days=7))
    assert proving.check(now=now)
    Record.objects.update(wanted_at=now)
    pages = {
        "quote": reverse("quote", args=[quoted(us, rival).pk]),
        "market": reverse("market"),
        "round": reverse("round", args=[Round.objects.get().pk]),
        "job-running": reverse("job", args=[runs.pk]),
        "job-waiting": reverse("job", args=[waits.pk]),
        "node": reverse("node", args=[idle.pk]),
        "offer": reverse("new_offer", args=[idle.pk]),
        **{reader: reverse("mechanism", args=[reader])
           for reader in ("buyers", "suppliers", "economists", "files")},
    }  # fmt: skip
    return us, pages, client_of(us).cookies[settings.SESSION_COOKIE_NAME].value


@transaction.atomic
def room_made(us: Org) -> dict[str, str]:
    """More pages of the same: a protected job that has paid its premium, one that left for another,
    that other one, and their nodes."""
    now = timezone.now()
    begun, asked = now - timedelta(minutes=20), now - timedelta(minutes=1)
    premium = {"limits": {H200: 9 * MICRO}, "premium_bps": 1000}
    kept = world.job(us, now=begun, name="Kept whatever comes", **premium)
    paying = world.agent(us, now=now, gpu_class=H200, name="node-of-a-protected-job")
    runs_for(kept, paying, begun, minutes=10)
    leaves = {"service": "interruptible", "limits": {H200: 3 * MICRO}}
    leaving = world.job(us, now=begun, name="Leaves for another", **leaves)
    runs_for(leaving, world.agent(us, now=now, gpu_class=H200), begun, minutes=10)
    left = world.job(us, now=begun, name="Left for another", **leaves)
    freed = world.agent(us, now=now, gpu_class=H200, name="node-that-is-held")
    lease = runs_for(left, freed, begun, minutes=10)
    waits = [
        world.job(us, now=asked, name="Others leave for it", **premium, queued_at=asked)
        for _ in range(2)
    ]
    clearing.clear_market(now=asked)
    assert Hold.objects.count() == 2
    share = lease.assignments.select_related("lease").get()
    freed.says(world.status(share, "gone", exit=world.exited(75, "drain"), settled=True), now=now)
    assert Job.objects.get(pk=left.pk).state == "queued"
    return {
        "job-protected": reverse("job", args=[kept.pk]),
        "job-displaced": reverse("job", args=[left.pk]),
        "job-leaving": reverse("job", args=[leaving.pk]),
        **{
            f"job-awaited-{number}": reverse("job", args=[job.pk])
            for number, job in enumerate(waits)
        },
        "node-paid-premium": reverse("node", args=[paying.node.pk]),
        "node-held": reverse("node", args=[freed.node.pk]),
        "supply": reverse("supply"),
    }


def runs_for(job: Job, agent: world.Agent, begun: datetime, *, minutes: int) -> Lease:
    """It runs on the agent's node for so long, and is billed for it."""
    lease = world.lease(job, agent, now=begun)
    share = lease.assignments.select_related("lease").get()
    for seconds in range(0, 60 * minutes + 1, 20):
        at = begun + timedelta(seconds=seconds)
        agent.says(world.status(share, "running", running_ms=seconds * 1000), now=at)
    metering.claim(agent.node, agent.claim(share, 60_000 * minutes), now=at)
    metering.settle(now=at)
    Assignment.objects.filter(pk=share.pk).update(saved_ms=60_000 * (minutes - 3))
    agent.says(world.status(share, "running", running_ms=60_000 * minutes), now=timezone.now())
    return lease


def quoted(us: Org, rival: Org) -> Quote:
    """A protected job's options, more of them than are shown: nodes, a gang, and what won't do."""
    now = timezone.now()
    hall = world.agent(rival, now=now, gpus=2, lan_address="10.0.0.1").node.site
    for number in range(40):
        near = {"site": hall, "lan_address": "10.0.0.2"} if number < 3 else {}
        kind = A100 if number > 36 else H100
        ask, gpus = (2 + number % 5) * MICRO, 2 + number % 3
        world.agent(
            rival, now=now, name=f"rack-{number}", gpus=gpus, ask=ask, gpu_class=kind, **near
        )
    code = folder(org=us, name="code", version=1, created_by="me", manifest=MAIN)
    Dataset.objects.create(**code)
    asked = {
        "recipe": "script", "script": "code", "parameters": {"entry": "main.py"}, "budget": "60",
        "name": "Tell one galaxy from another", "memory_gib": 2, "hours": 3, "gpus": 4,
        "level": "site", "limit": "9",
    }  # fmt: skip
    with override_settings(POLICY=settings.POLICY.overridden({"premium_bps": "1000"})):
        return quoting.quote(us, specs.parse(asked), now=now)


@pytest_asyncio.fixture
async def tab(site: str) -> AsyncIterator[Page]:  # noqa: F811
    """A tab that fails the test if a page's own scripts do."""
    chromium = await sync_to_async(debian.chromium)()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = await (await browser.new_context(base_url=site)).new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        yield tab
        await browser.close()
        assert wrong == []


async def faults(tab: Page, name: str) -> list[str]:
    """What is wrong with the page that is open, at each width and in each theme."""
    found = []
    await tab.evaluate(AXE)
    await tab.evaluate(UNFOLD)
    for width, theme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        look = f"{name}-{width}-{theme}"
        await tab.set_viewport_size({"width": width, "height": 900})
        await tab.emulate_media(color_scheme=theme)
        if await tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"{look}: wider than the screen")
        if width > 1000:
            found += [f"{look}: cut off: {each}" for each in await tab.evaluate(CUT)]
        # Where things stand does not hang on the theme, nor colours on the width: two looks do.
        if (width, theme) in ((1280, "light"), (390, "dark")):
            found += [f"{look}: {each}" for each in await tab.evaluate(BROKEN)]
        if kept := os.environ.get("SCREENSHOTS"):
            await tab.screenshot(path=Path(kept) / f"{look}.png", full_page=True)
    return found


async def test_pages_can_be_read_at_any_width_in_any_theme_by_anybody(tab, site, s3):  # noqa: F811
    us, pages, session = await sync_to_async(market)()
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": session, "url": site}
    await tab.context.add_cookies([cookie])
    found = await all_faults(tab, pages)
    # Only now: what waited above may find a place by this.
    found += await all_faults(tab, await sync_to_async(room_made)(us))
    assert found == []


async def all_faults(tab: Page, pages: dict[str, str]) -> list[str]:
    """Of pages by their names."""
    found = []
    for name, path in pages.items():
        answer = await tab.goto(path)
        assert answer.status == 200, path
        found += await faults(tab, name)
    return found
