"""A whole market of real processes, on ports of its own, with short times."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buyers.sdk import Client
from marketplace.devstack.live import LiveSite, live_site
from tests import tiny_base

# A minute of the market's patience becomes a few seconds of the suite's.
TIMES = {
    "POLICY_HEARTBEAT_S": "0.5",
    "POLICY_LEASE_TTL_S": "3",
    "POLICY_LOST_AFTER_S": "4",
    "POLICY_LISTENING_S": "3",
    "POLICY_ROUND_S": "1",
    "POLICY_WATCH_S": "0.5",
    "POLICY_SETTLE_S": "2",
    "POLICY_SAVE_DEFAULT_S": "3",
    "POLICY_DISPLACE_AFTER_S": "5",
    "POLICY_DISPLACE_NOTICE_S": "5",
}
BASE = "tiny-llama"


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """The site with two suppliers' nodes, a public base and a buyer with money."""
    folder: Path = tmp_path_factory.mktemp("story")
    before = dict(os.environ)
    os.environ.update(TIMES)
    try:
        with live_site(folder / "data", print, anywhere=True) as it:
            base = folder / BASE
            tiny_base.write(base)
            it.supervisor.run(
                it.stack.command(
                    "publish_base", str(base), "--name", BASE, "--licence", "apache-2.0"
                )
            )
            it.start_nodes(print)
            yield it
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="package")
def buyer(site: LiveSite) -> Client:
    """A buyer with an API key and 20 dollars, paid by card."""
    from marketplace.devstack import demo

    account = next(each for each in site.accounts if each["role"] == "buyer")
    client = Client(site.stack.site_url, account["key"])
    demo.pay(client, "20.00")
    return client


@pytest.fixture(scope="package")
def dataset(buyer: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sums to learn, and others held out."""
    folder = tmp_path_factory.mktemp("sums")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(12) for b in range(12)]
    for name, part in (("train", rows[::2]), ("heldout", rows[1::8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(buyer.upload(folder, "sums").id)
