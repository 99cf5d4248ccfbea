"""The buyer's end of a shell, as the command line has it: through uvicorn, by an API key."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from buyers import shells
from marketplace import accounts
from marketplace.models import Scope
from scheduler.models import Shell


async def test_a_shell_whose_node_does_not_answer_ends_though_something_was_typed(
    site, buyer, ran, monkeypatch, today
):
    monkeypatch.setattr(shells, "_ANSWER_S", 0.2)

    def make_key():
        by = buyer.members.get()
        return accounts.create_key(buyer, name="k", scopes=[Scope.ATTACH], by=by, now=today)[1]

    key = await sync_to_async(make_key)()
    async with connect(
        f"ws{site.removeprefix('http')}/api/v1/jobs/{ran.job.pk}/shell",
        additional_headers={"Authorization": f"Bearer {key}"},
        origin=site,
    ) as wire:
        await wire.send(b"d\0\3ls\n")
        with pytest.raises(ConnectionClosed, match="doesn't answer"):
            async with asyncio.timeout(30):
                await wire.recv()
    async with asyncio.timeout(30):
        while await Shell.objects.filter(ended_at=None).aexists():  # noqa: ASYNC110 (no bell)
            await asyncio.sleep(0.05)
    assert (await Shell.objects.aget()).typed == "ls\n"
