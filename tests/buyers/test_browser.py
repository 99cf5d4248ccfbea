"""What only a browser can tell: the live page lives, and an upload goes past us to the storage."""

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from playwright.async_api import Page, async_playwright, expect

from buyers.models import Dataset, Job, MetricPoint
from marketplace import telemetry
from marketplace.core.money import MICRO
from scheduler import archive, clearing
from scheduler.models import Round
from tests import debian, world
from tests.buyers import folders
from tests.buyers.conftest import client_of

FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-dev-shm-usage").split()  # fmt: skip

expect.set_options(timeout=30_000)  # on the busiest machine; nothing is judged by its pace


@pytest_asyncio.fixture
async def tab(site, buyer) -> AsyncIterator[Page]:
    """A logged-in tab that fails the test if the page's own scripts do."""
    name = settings.SESSION_COOKIE_NAME
    cookie = (await sync_to_async(client_of)(buyer)).cookies[name].value
    chromium = await sync_to_async(debian.chromium)()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = await browser.new_context(base_url=site, viewport={"width": 1200, "height": 1400})
        await context.add_cookies([{"name": name, "value": cookie, "url": site}])
        tab = await context.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        yield tab
        if kept := os.environ.get("SCREENSHOTS"):
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].split(" ")[0]
            await tab.screenshot(path=Path(kept) / f"{test}.png", full_page=True)
        await browser.close()
        assert wrong == []


async def test_an_open_job_page_follows_the_job(tab, ran):
    await tab.goto(f"/buy/jobs/{ran.job.pk}/")
    await expect(tab.locator("#curve canvas")).to_be_visible()
    await expect(tab.locator("#job-state")).to_contain_text("step 2 of 4")

    await Job.objects.filter(pk=ran.job.pk).aupdate(step=3, spent_micros=1_500_000)
    await MetricPoint.objects.acreate(
        job=ran.job, epoch=ran.lease.epoch, step=3, values={"loss": 2.0}, at=timezone.now()
    )
    said = [("stdout", 0, "step 3 <done>\n")]
    await sync_to_async(telemetry.keep_log)(ran.job.pk, ran.lease.epoch, said)
    await sync_to_async(telemetry.job_changed)(ran.job.pk)
    await expect(tab.locator("#job-state")).to_contain_text("step 3 of 4")
    await expect(tab.locator("#job-cost")).to_contain_text("$1.50")
    await expect(tab.locator("#job-log pre")).to_have_text("step 3 <done>\n")
    await expect(tab.locator("#job-state")).to_have_count(1)
    await expect(tab.locator("#curve .u-legend")).to_contain_text("held-out loss")

    await tab.get_by_role("button", name="Save and stop").click()
    await expect(tab.locator("#job-state")).to_contain_text("leaving")


async def test_a_no_is_shown_on_the_page_it_came_from(tab, ran):
    await tab.goto(f"/buy/jobs/{ran.job.pk}/")
    # Behind the page's back: no bell is rung. The answer must find the page even if the socket
    # takes the button away meanwhile.
    await Job.objects.filter(pk=ran.job.pk).aupdate(state="cancelled")
    await tab.evaluate("document.getElementById('stop-job').requestSubmit()")
    await expect(tab.locator("#errors")).to_contain_text("cannot stop")
    await expect(tab.locator("#errors")).to_have_count(1)


async def test_a_press_on_what_would_place_a_job_makes_that_change(tab, node, buyer, today):
    """The button stands outside its form, and there are several of them."""

    def left_waiting() -> Job:
        job = world.job(buyer, now=today, limits={"h100-sxm": MICRO}, regions=["us-east"])
        world.agent(node.node.site.org, now=today, region="us-east")
        world.agent(node.node.site.org, now=today, ask=MICRO // 2)
        clearing.clear_market(now=today)
        return job

    job = await sync_to_async(left_waiting)()
    await tab.goto(f"/buy/jobs/{job.pk}/")
    await expect(tab.locator("#job-waiting li")).to_have_count(2)
    await tab.get_by_role("button", name="Raise the limit").click()
    await expect(tab.locator("#job-waiting")).to_be_hidden()
    await expect(tab.locator("#job-state")).to_contain_text("waiting for the next round")
    await job.arefresh_from_db()
    assert job.limits["h100-sxm"] > MICRO
    assert job.regions == ["us-east"]


async def test_a_dataset_goes_from_the_browser_to_the_storage(tab, s3, tmp_path):
    files = []
    for name, data in folders.TRAINING.items():
        (tmp_path / name).write_bytes(data)
        files.append(str(tmp_path / name))

    async def upload():
        await tab.goto("/buy/datasets/")
        await tab.get_by_label("Name").fill("pairs")
        await tab.get_by_label("Files").set_input_files(files)
        await tab.get_by_role("button", name="Upload").click()

    await upload()
    await expect(tab.locator("#dataset")).to_contain_text("7 rows")
    await expect(tab.locator("#dataset")).to_contain_text("What does f do?")
    made = await Dataset.objects.aget()
    assert (made.name, made.rows) == ("pairs", 7)

    (tmp_path / "train.jsonl").write_bytes(b"nonsense\n")
    await upload()
    await expect(tab.locator("#upload-status")).to_contain_text("train.jsonl line 1")


async def test_a_job_is_asked_for_quoted_and_taken(tab, node, s3, buyer, today):
    await sync_to_async(folders.upload)(buyer, "code", folders.SCRIPT, now=today)
    await tab.goto("/buy/jobs/new/")
    await tab.get_by_label("Recipe").select_option("script")
    # The fields that only another recipe has are gone once the form is the script's.
    await expect(tab.get_by_label("Entry")).to_be_visible()
    await tab.get_by_label("Script").select_option(label="code v1")
    await tab.get_by_label("Entry").fill("main.py")
    await tab.get_by_label("Budget, $").fill("5")
    await tab.get_by_label("Memory on each GPU, GiB").fill("2")
    await tab.get_by_label("Hours it will run, about").fill("0.5")
    await tab.get_by_role("button", name="Show where it can run").click()
    await expect(tab.get_by_text("These prices hold until")).to_be_visible()
    if kept := os.environ.get("SCREENSHOTS"):
        await tab.screenshot(path=Path(kept) / "quote.png", full_page=True)
    await tab.get_by_role("button", name="Take").click()
    await expect(tab.locator("#job-state")).to_contain_text("placed")


async def test_the_page_of_a_round_draws_its_curves_and_fits_a_phone(tab, today, s3):
    def cleared() -> Round:
        with transaction.atomic():
            world.listening(today)
            for number in range(1, 7):
                buyer = world.org(f"Buyer {number}", now=today, wallet=100 * MICRO)
                world.job(buyer, now=today, limits={"h100-sxm": (number + 1) * MICRO})
                supplier = world.org(f"Supplier {number}", now=today)
                world.agent(supplier, now=today, ask=number * MICRO)
        clearing.clear_market(now=today)
        archive.publish()
        archive.release(now=today + timedelta(days=7))
        return Round.objects.get()

    round = await sync_to_async(cleared)()
    await tab.goto(f"/market/rounds/{round.pk}/")
    await expect(tab.locator("#curve-chart canvas")).to_be_visible()
    await expect(tab.locator("#verification")).to_contain_text("BOOK.npz")
    await tab.set_viewport_size({"width": 390, "height": 1000})
    await expect(tab.locator("#curve-chart canvas")).to_be_visible()
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
