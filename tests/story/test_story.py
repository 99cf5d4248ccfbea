"""The story: an idle machine, a job, a machine that vanishes, a model, an exact bill."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from buyers.sdk import Client
from marketplace.devstack.live import LiveSite
from tests.story import jobs
from tests.story.conftest import BASE

pytestmark = pytest.mark.timeout(400)


def test_a_run_outlives_its_machine_and_is_billed_to_the_micro(
    site: LiveSite, buyer: Client, dataset: str, tmp_path: Path
) -> None:
    before = buyer.wallet()
    # 1. An offer is quoted and taken: aurora's.
    quote, option = jobs.offered(
        buyer, "aurora", name="sums", recipe="lora", base=BASE, dataset=dataset, budget="1.00",
        parameters={
            "steps": 200, "batch_size": 8, "rank": 8, "checkpoint_every": 25,
            "evaluate_samples": 8, "answers": 1, "max_length": 64,
        },
    )  # fmt: skip
    job = buyer.take(quote, option)

    # 2. It trains in aurora's sandbox until a checkpoint is safe; then aurora is no more.
    jobs.until(buyer, job, lambda now: bool(buyer.checkpoints(job)) and now.step > 25)
    first = buyer.checkpoints(job)[0]
    jobs.kill_node(site, "aurora")

    # 3. It goes on elsewhere, from what was saved.
    second = jobs.until(
        buyer, job, lambda now: bool(now.nodes) and now.nodes[0].node == "breakwater"
        and now.state == "running",
    )  # fmt: skip
    assert second.lease is not None
    assert second.lease.epoch > first.epoch
    done = buyer.wait(job)
    assert done.state == "succeeded", f"{done.words}\n{buyer.log(job)}"
    curve = [point for point in buyer.metrics(job).points if "loss" in point.values]
    resumed = min(point.step for point in curve if point.epoch == second.lease.epoch)
    assert resumed > first.step

    # 4. The bill adds up: what the wallet lost is what the receipt says, and the books balance.
    receipt = buyer.receipt(job)
    assert [line.end_reason for line in receipt.lines] == ["node_lost", "completed"]
    assert receipt.total_micros == receipt.charged_micros - receipt.credited_micros
    assert receipt.charged_micros == receipt.fees_micros + receipt.earnings_micros
    after = buyer.wallet()
    assert before.balance_micros - after.balance_micros == receipt.total_micros
    assert after.held_micros == 0
    assert done.spent_micros == receipt.total_micros <= done.budget_micros
    assert jobs.books_balance(site)

    # 5. The model is the buyer's: downloaded, whole, and it loads.
    folder = buyer.download(job, tmp_path / "model")
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights
    target = json.loads((folder / "evaluation.json").read_text())["domains"][0]
    assert (target["name"], target["verdict"]) == ("target", "kept")
    assert target["after"] < target["before"]
    jobs.bring_back(site, "aurora")
