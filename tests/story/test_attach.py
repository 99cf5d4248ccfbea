"""A look into a running job: a shell by way of market, agent and keeper, with a trace of it."""

import time
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from buyers.sdk import Client, GridloomError
from buyers.sdk.job_shapes import Job
from marketplace.devstack.live import LiveSite
from tests.story import jobs

pytestmark = pytest.mark.timeout(300)


def test_a_buyer_looks_into_a_running_job_and_nobody_else_does(
    site: LiveSite, buyer: Client, tmp_path: Path
) -> None:
    project = jobs.script(buyer, tmp_path / "counter", jobs.COUNTER)
    job = jobs.counting(buyer, project, steps=2000, pace=0.05)
    with pytest.raises(GridloomError, match="running job only"), buyer.shell(job) as shell:
        shell.read()
    jobs.until(buyer, job, lambda now: now.step > 1)
    with buyer.shell(job) as shell:
        shell.resize(40, 120)
        shell.type(b"stty size; tail -1 $GRIDLOOM_METRICS; echo e''nd; exit\n")
        shown = b""
        while data := shell.read():
            shown += data
    assert b"40 120" in shown
    assert b'"total_steps": 2000' in shown
    assert b"\nend" in shown
    opened, ended = _story_of_shells(buyer, job)
    assert "opened the shell" in opened
    assert "characters typed" in ended
    # The key of another org, and the id of nothing, find no job.
    supplier = next(each for each in site.accounts if each["role"] == "supplier")
    address = site.stack.site_url.replace("http", "ws")
    for key in (supplier["key"], "glk_of_nobody", ""):
        with pytest.raises(InvalidStatus) as refused:
            connect(
                f"{address}/api/v1/jobs/{job.id}/shell",
                origin=site.stack.site_url,
                additional_headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        assert refused.value.response.status_code == 404
    # It ends with its job.
    with buyer.shell(job) as shell:
        shell.type(b"echo he''re\n")
        shown = b""
        while b"here" not in shown:
            shown += shell.read()
        buyer.cancel(job)
        while shell.read():
            pass
    assert buyer.wait(job).state == "cancelled"


def _story_of_shells(buyer: Client, job: Job) -> list[str]:
    """The opening and the end of one shell; the end is written once both sides are gone."""
    deadline = time.monotonic() + jobs.PATIENCE_S
    while True:
        lines = [line.reason for line in buyer.story(job) if "shell" in line.reason]
        if len(lines) == 2:
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
