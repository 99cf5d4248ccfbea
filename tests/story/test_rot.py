"""A checkpoint whose bytes have rotted is never trained on from, and not paid for."""

import time
from pathlib import Path

import boto3
import pytest
from botocore.client import Config

from buyers.sdk import Client
from buyers.sdk.job_shapes import Checkpoint, Job
from marketplace.devstack.live import LiveSite
from tests.story import jobs

pytestmark = pytest.mark.timeout(300)


def rot(site: LiveSite, job: Job, checkpoint: Checkpoint) -> None:
    """Other bytes of the same length lie where its files should."""
    env = site.stack.environment()
    storage = boto3.client(
        "s3", endpoint_url=env["S3_ENDPOINT_URL"], aws_access_key_id=env["S3_ACCESS_KEY"],
        aws_secret_access_key=env["S3_SECRET_KEY"], region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    (bucket,) = (each["Name"] for each in storage.list_buckets()["Buckets"])
    prefix = f"jobs/{job.id}/{checkpoint.epoch}/checkpoint-{checkpoint.step}/"
    found = storage.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    for each in found:
        storage.put_object(Bucket=bucket, Key=each["Key"], Body=b"#" * each["Size"])


def test_the_checkpoint_before_a_rotten_one_is_gone_on_from_and_its_writer_gives_back(
    site: LiveSite, buyer: Client, tmp_path: Path
) -> None:
    project = jobs.script(buyer, tmp_path / "rotting", jobs.COUNTER)
    # Saves lie further apart than a lost node's claims lag behind: of the last stretch some is paid.
    job = jobs.counting(buyer, project, steps=20, pace=1.2)
    before = jobs.until(buyer, job, lambda now: len(buyer.checkpoints(now)) >= 3)
    lost = before.nodes[0].node
    jobs.kill_node(site, lost)
    newest, good = buyer.checkpoints(job)[:2]
    rot(site, job, newest)

    done = buyer.wait(job)
    assert done.state == "succeeded", done.words
    lines = buyer.receipt(job).lines
    assert [line.end_reason for line in lines] == ["node_lost", "bad_checkpoint", "completed"]
    again = [p.step for p in buyer.metrics(job).points if p.epoch == lines[2].epoch]
    assert min(again) == good.step + 1

    deadline = time.monotonic() + jobs.PATIENCE_S
    reason = f"its checkpoint of step {newest.step} can't be read"
    while not any(reason in credit.reason for credit in buyer.receipt(job).lines[0].credits):
        assert time.monotonic() < deadline, "nobody has looked at the checkpoint"
        time.sleep(0.2)
    assert buyer.job(job).spent_micros == buyer.receipt(job).total_micros
    assert jobs.books_balance(site)
    jobs.bring_back(site, lost)
