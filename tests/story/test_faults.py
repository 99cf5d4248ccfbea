"""What goes wrong while a job runs: none of it costs work that was saved, or money."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from buyers.sdk import Client
from buyers.sdk.job_shapes import Job
from marketplace.devstack.live import LiveSite
from tests.story import jobs

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="package")
def counter(buyer: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    return jobs.script(buyer, tmp_path_factory.mktemp("projects") / "counter", jobs.COUNTER)


@pytest.fixture
def running(buyer: Client, counter: str) -> Iterator[Job]:
    """A job that has made some steps and has many to go."""
    job = jobs.counting(buyer, counter, steps=40, pace=0.2)
    yield jobs.until(buyer, job, lambda now: now.step >= 3)
    if not buyer.job(job).rests:
        buyer.cancel(job)
        buyer.wait(job)


def _goes_on(buyer: Client, job: Job, site: LiveSite) -> None:
    """It ends well, as the one attempt that it was, for what it ran."""
    done = buyer.wait(job)
    assert done.state == "succeeded", f"{done.words}\n{buyer.log(job)}"
    (line,) = buyer.receipt(job).lines
    assert line.end_reason == "completed"
    assert done.lease is not None
    assert job.lease is not None
    assert done.lease.epoch == job.lease.epoch
    assert jobs.books_balance(site)


def test_an_agent_that_is_killed_finds_its_job_again(
    site: LiveSite, buyer: Client, running: Job
) -> None:
    name = running.nodes[0].node
    jobs.kill_agent(site, name)
    jobs.bring_back(site, name)
    _goes_on(buyer, running, site)


@pytest.mark.parametrize("service", ["agents", "web", "worker", "valkey", "postgres"])
def test_a_part_of_the_market_restarts_in_mid_job(
    site: LiveSite, buyer: Client, running: Job, service: str
) -> None:
    site.supervisor.restart(service)
    _goes_on(buyer, running, site)


def test_the_budget_is_a_wall_and_the_last_steps_are_saved(
    site: LiveSite, buyer: Client, counter: str
) -> None:
    job = jobs.counting(buyer, counter, steps=1000, pace=0.2, budget="0.002", limit="0.60")
    done = buyer.wait(job)
    assert done.state == "stopped", done.words
    assert "budget" in done.words
    assert 0 < done.spent_micros <= done.budget_micros
    saved = buyer.checkpoints(job)
    assert saved
    assert saved[0].step >= done.step - 1
    more = buyer.resume(job, budget="0.50")
    assert jobs.until(buyer, more, lambda now: now.step > saved[0].step)
    buyer.cancel(job)
    assert buyer.wait(job).state == "cancelled"
    assert jobs.books_balance(site)


def test_a_stopped_job_is_resumed_from_where_it_was(
    site: LiveSite, buyer: Client, running: Job
) -> None:
    buyer.stop(running)
    stopped = buyer.wait(running)
    assert stopped.state == "stopped"
    buyer.resume(running)
    done = buyer.wait(running)
    assert done.state == "succeeded"
    first, second = buyer.receipt(running).lines
    assert (first.end_reason, second.end_reason) == ("stopped", "completed")
    points = buyer.metrics(running).points
    assert min(p.step for p in points if p.epoch == second.epoch) == stopped.step + 1


_FILLS_THE_DISK = """\
import os
with open(os.environ["GRIDLOOM_OUTPUT"] + "/hog", "wb") as hog:
    while True:
        hog.write(bytes(1 << 22))
        hog.flush()
"""
_LEAVES_A_LINK = """\
import os
os.makedirs("/job/output/artifact")
os.symlink("/etc/passwd", "/job/output/artifact/stolen")
"""


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("crash", "raise SystemExit(3)", "exit code 3"),
        ("disk", _FILLS_THE_DISK, ""),
        ("link", _LEAVES_A_LINK, "symlink"),
    ],
)
def test_a_script_that_misbehaves_fails_with_the_reason(
    site: LiveSite, buyer: Client, tmp_path: Path, name: str, text: str, word: str
) -> None:
    project = jobs.script(buyer, tmp_path / name, text)
    job = jobs.counting(buyer, project, steps=1, pace=1)
    done = buyer.wait(job)
    assert done.state == "failed", f"{done.words}\n{buyer.log(job)}"
    assert word in done.words
    assert jobs.books_balance(site)
