"""What stands before every view: how much a request may bring, and how its user logs in."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User

from marketplace.asgi import MAX_BODY, agents, application, bounded

ROOT = Path(__file__).resolve().parents[1]
PLACES = [(application, "/stripe/webhook"), (agents, "/agent/v1/enrol")]


async def counting(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Reads a body to its end, and answers how long it was."""
    taken, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        taken, more = taken + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(taken).encode()})


async def post(app: Any, path: str, **what: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post(path, **what)


async def stream(size: int) -> AsyncIterator[bytes]:
    """A body that doesn't say how long it will be."""
    for start in range(0, size, 2**20):
        yield bytes(min(2**20, size - start))


@pytest.mark.parametrize(("app", "path"), PLACES)
async def test_a_body_that_says_it_is_too_large_is_not_taken(app, path):
    answer = await post(app, path, content=b"", headers={"content-length": str(MAX_BODY + 1)})
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "at most 8 MiB" in answer.text


@pytest.mark.parametrize(("app", "path"), PLACES)
async def test_a_body_that_turns_out_to_be_too_large_is_cut(app, path):
    answer = await post(app, path, content=stream(MAX_BODY + 1))
    assert answer.status_code == 413


async def test_a_body_as_large_as_may_be_arrives_whole():
    answer = await post(bounded(counting), "/", content=stream(MAX_BODY))
    assert (answer.status_code, answer.text) == (200, str(MAX_BODY))


def test_nobody_logs_in_past_the_sites_own_log_in(client, db):
    User.objects.create_superuser("root", "root@example.org", "a-long-password")
    for call in (client.get, client.post):
        said = {"username": "root", "password": "a-long-password"}
        answer = call("/admin/login/?next=/admin/", said if call == client.post else None)
        assert answer.status_code == 302
        assert answer.url.startswith("/account/login/?next=")
    assert "_auth_user_id" not in client.session


def test_whoever_is_logged_in_and_no_operator_has_no_admin(client, db):
    client.force_login(User.objects.create_user("somebody"))
    assert client.get("/admin/login/").status_code == 403


def test_the_site_loads_the_loops_that_quote_before_anybody_asks():
    """In a process of its own, as uvicorn starts it: they stay out of the others."""
    said = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["lifespan.startup.complete", "False", "True"]


START = """
import asyncio, os, sys, threading

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
from marketplace.asgi import application

before = "scheduler.matching.quote" in sys.modules
said, told = asyncio.Queue(), asyncio.Queue()


async def main():
    site = asyncio.create_task(application({"type": "lifespan"}, said.get, told.put))
    await said.put({"type": "lifespan.startup"})
    print((await told.get())["type"], before)
    for thread in threading.enumerate():
        if thread.name == "warming":
            await asyncio.to_thread(thread.join)
    print("scheduler.matching.quote" in sys.modules)
    await said.put({"type": "lifespan.shutdown"})
    await site


asyncio.run(main())
"""
