"""A job's whole life on a node, with a real keeper in a real sandbox and a market that listens."""

import asyncio
from uuid import UUID

import pytest

from agent.config import State
from agent.protocol import Gang, Member, Status
from tests.agent.conftest import OBEDIENT, resume, spec
from tests.agent.market import Market

TRAIN = b"""
import json, os, sys, time
told = json.load(open(os.environ["GRIDLOOM_JOB"]))
assert told["output"] == os.environ["GRIDLOOM_OUTPUT"]
metrics = open(os.environ["GRIDLOOM_METRICS"], "a", buffering=1)
print("hello from the job")
for step in range(1, 5):
    metrics.write(json.dumps({"step": step, "total_steps": 4, "loss": 1 / step}) + "\\n")
    folder = f"{told['output']}/.making-{step}"
    os.makedirs(folder)
    open(f"{folder}/weights", "wb").write(bytes([step]) * 1000)
    os.rename(folder, f"{told['output']}/checkpoint-{step}")
    time.sleep(0.6)
os.makedirs(f"{told['output']}/artifact/inner")
open(f"{told['output']}/artifact/inner/model", "wb").write(b"the result")
"""
SPARSE = """os.makedirs('/job/output/artifact')
for name in 'ab': os.truncate(os.open(f'/job/output/artifact/{name}', os.O_RDWR | os.O_CREAT), 40 << 20)
"""
GANG = Gang(
    gather_s=60.0,
    gpus_min=2,
    network=7,
    token="a" * 64,
    members=[
        Member(address=f"10.64.0.{rank}", lan=f"10.0.0.{rank}", port=47_900 + rank, gpus=1)
        for rank in (1, 2)
    ],
)
FOREVER = b"import time\nwhile True: time.sleep(0.05)"


async def _ended(market: Market, job: UUID) -> Status:
    return await market.until(lambda: market.settled(job))


async def test_a_job_runs_from_a_wish_to_its_artifact(market: Market, node: State, device: str):
    script = market.offer({"main.py": TRAIN}, "script")
    data = market.offer({"train.jsonl": b"{}\n" * 10, "deep/er/file": b"x"}, "dataset")
    job = market.want(spec(script, data, devices=[device]))
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why, status.step) == (0, "exited", 4)
    states = list(dict.fromkeys(one.state for one in market.history if one.id == job))
    assert states[-2:] == ["running", "gone"]
    [artifact] = market.sent("artifact")
    assert artifact.files == {"inner/model": b"the result"}
    checkpoints = market.sent("checkpoint")
    assert checkpoints
    assert all(one.files == {"weights": bytes([one.step]) * 1000} for one in checkpoints)
    [logs] = market.sent("log")
    assert logs.files == {"stdout.log": b"hello from the job\n"}
    assert {point.step for point in market.metrics} == {1, 2, 3, 4}
    assert market.metrics[0].values == {"total_steps": 4.0, "loss": 1.0}
    assert "hello from the job\n" in [chunk.text for chunk in market.logs]
    final = market.claims[-1]
    assert final.final
    assert final.running_ms == status.running_ms > 1000
    assert final.millijoules > 0
    market.unwant(job)
    await market.until(lambda: market.last().assignments == [])
    assert list(node.assignments.iterdir()) == []


async def test_the_final_claim_is_made_before_the_job_is_settled(
    market: Market, node: State, device: str
):
    market.faults.lose_receipts = 99
    job = market.want(spec(market.offer({"main.py": b""}, "script"), devices=[device]))
    await market.until(lambda: market.claims and market.claims[-1].final)
    assert market.settled(job) is None  # nobody has answered for it yet
    market.faults.lose_receipts = 0
    market.cut()  # on the next socket it is claimed again
    await _ended(market, job)
    finals = [claim for claim in market.claims if claim.final]
    assert len(finals) >= 2
    assert all(claim == finals[0] for claim in finals)


async def test_a_job_goes_on_from_its_checkpoint(market: Market, node: State, device: str):
    code = b"""
import os
path = os.environ["GRIDLOOM_RESUME_FROM"]
print(open(path + "/weights").read(), sorted(os.listdir("/job/inputs")))
"""
    folder = market.offer({"weights": b"from step 7"}, "resume")
    script = market.offer({"main.py": code}, "script")
    job = market.want(spec(script, devices=[device], resume=resume(7, folder)))
    status = await _ended(market, job)
    assert status.exit.code == 0
    [logs] = market.sent("log")
    assert logs.files["stdout.log"] == b"from step 7 ['resume', 'script']\n"


async def test_a_job_that_fails_leaves_its_checkpoint_and_its_log(
    market: Market, node: State, device: str
):
    code = TRAIN.replace(b"time.sleep(0.6)", b"step == 2 and sys.exit(3)")
    job = market.want(spec(market.offer({"main.py": code}, "script"), devices=[device]))
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why, status.checkpoint) == (3, "exited", 2)
    assert market.sent("artifact") == []
    assert market.sent("checkpoint")[-1].step == 2
    assert market.sent("log")


async def test_a_drained_job_saves_and_leaves(market: Market, node: State, device: str):
    job = market.want(spec(market.offer({"main.py": OBEDIENT}, "script"), devices=[device]))
    await market.until(lambda: market.metrics)  # its handler is in place
    market.drain(job, "reclaimed", 20)
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why) == (75, "drain")
    assert market.sent("checkpoint")[-1].files == {"w": b"saved"}
    assert status.checkpoint == 9


async def test_a_second_drain_with_less_patience_counts(market: Market, node: State, device: str):
    code = b"import signal, time\nsignal.signal(15, 1)\nprint('deaf')\nwhile True: time.sleep(1)"
    job = market.want(spec(market.offer({"main.py": code}, "script"), devices=[device]))
    await market.until(lambda: market.logs)
    market.drain(job, "reclaimed", 1000)
    await market.until(lambda: market.state(job) == "draining")
    market.drain(job, "node_lost", 0)
    status = await _ended(market, job)
    assert status.exit.signal == 9


async def test_a_job_that_nobody_wants_is_killed_and_nothing_is_sent(
    market: Market, node: State, device: str
):
    job = market.want(spec(market.offer({"main.py": FOREVER}, "script"), devices=[device]))
    await market.until(lambda: market.state(job) == "running")
    market.unwant(job)
    await market.until(lambda: market.last().assignments == [])
    assert list(node.assignments.iterdir()) == []
    assert market.folders == []


async def test_a_job_drained_before_it_came_never_runs(market: Market, node: State, device: str):
    market.faults.break_after = [0] * 1000
    job = market.want(spec(market.offer({"main.py": FOREVER}, "script"), devices=[device]))
    await market.until(lambda: market.gets)
    market.drain(job, "cancelled", 30)
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why, status.running_ms) == (None, "drain", 0)
    assert market.claims == []


async def test_what_is_not_paid_for_ends_and_what_is_paid_in_time_goes_on(
    market: Market, node: State, device: str
):
    script = market.offer({"main.py": OBEDIENT}, "script")
    job = market.want(spec(script, devices=[device], save_s=0.5), paid_ms=2000)
    await market.until(lambda: market.state(job) == "running")
    market.pay(job, 4000)
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why) == (75, "unpaid")
    assert 3000 < status.running_ms <= 4000
    assert market.sent("checkpoint")


async def test_a_job_that_hangs_is_ended(market: Market, node: State, device: str):
    code = b"import time\nprint('I sleep')\ntime.sleep(1000)"
    script = market.offer({"main.py": code}, "script")
    job = market.want(spec(script, devices=[device], hang_s=1.0, grace_s=1.0))
    status = await _ended(market, job)
    assert status.exit.why == "hang"
    assert "no step" in status.detail


async def test_a_start_that_takes_too_long_is_given_up(market: Market, node: State, device: str):
    market.faults.break_after = [0] * 1000
    script = market.offer({"main.py": FOREVER}, "script")
    job = market.want(spec(script, devices=[device], start_timeout_s=1.0))
    status = await _ended(market, job)
    assert status.exit.why == "start_failed"
    assert "too slow to start: fetching script, 0 of 0 MB" in status.detail


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"environment": "0" * 64}, "another training environment"),
        ({"devices": ["GPU-of-somebody-else"]}, "the device GPU-of-somebody-else"),
        ({"devices": []}, "no device"),
        ({"recipe": "alchemy"}, "there is no recipe 'alchemy'"),
        ({"parameters": {"entry": "../main.py"}}, "entry must be a .py file"),
        ({"memory_bytes": 2**50}, "MiB of memory"),
        ({"world": 2}, "names none"),
        ({"world": 2, "gang": GANG}, "this node"),
        ({"inputs": []}, "the input 'script' is missing"),
    ],
)
async def test_what_this_node_can_not_run_is_refused_with_the_reason(
    market: Market, node: State, device: str, change: dict, words: str
):
    script = market.offer({"main.py": b""}, "script")
    job = market.want(spec(script, **({"devices": [device]} | change)))
    status = await _ended(market, job)
    assert status.exit.why == "refused"
    assert words in status.detail


async def test_a_spec_that_is_not_the_announced_one_is_refused(
    market: Market, node: State, device: str
):
    right = spec(market.offer({"main.py": b""}, "script"), devices=[device])
    other = spec(market.offer({"main.py": b"1"}, "script"), devices=[device])
    market.faults.unavailable = 3
    job = market.want(right)
    market.specs[job] = market.specs[market.want(other)]
    status = await _ended(market, job)
    assert status.exit.why == "refused"
    assert "SHA-256 differs" in status.detail


async def test_an_input_with_the_wrong_hash_never_reaches_a_job(
    market: Market, node: State, device: str
):
    market.faults.spoil = 100
    job = market.want(spec(market.offer({"main.py": b"print(1)"}, "script"), devices=[device]))
    status = await _ended(market, job)
    assert status.exit.why == "bad_input"
    assert status.detail == "main.py is not what its manifest says: its SHA-256 differs"
    assert len(market.gets) == 2  # once more from the start, then never again


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("dataset", {"../../outside": b"x"}, "outside of its folder"),
        ("dataset", {"a": b"x", "a/b": b"x"}, "'a' is both a file and a folder"),
        ("../dataset", {"x": b"x"}, "plain letters"),
        ("resume", {"x": b"x"}, "names clash"),
    ],
)
async def test_an_input_that_would_lie_elsewhere_is_refused(
    market: Market, node: State, device: str, name: str, files: dict[str, bytes], words: str
):
    script = market.offer({"main.py": b""}, "script")
    job = market.want(spec(script, market.offer(files, name), devices=[device]))
    status = await _ended(market, job)
    assert status.exit.why == "refused"
    assert words in status.detail
    assert market.gets == []


async def test_a_hostile_checkpoint_is_not_taken_and_the_job_goes_on(
    market: Market, node: State, device: str
):
    code = b"""
import os, time
os.makedirs("/job/output/.making")
os.symlink("/etc/passwd", "/job/output/.making/weights")
time.sleep(0.05)
os.rename("/job/output/.making", "/job/output/checkpoint-1")
time.sleep(2)
os.makedirs("/job/output/artifact")
open("/job/output/artifact/model", "w").write("fine")
"""
    job = market.want(spec(market.offer({"main.py": code}, "script"), devices=[device]))
    await market.until(lambda: "'weights': it is a symlink" in market.detail(job))
    status = await _ended(market, job)
    assert status.exit.code == 0
    assert market.sent("checkpoint") == []
    assert market.sent("artifact")[0].files == {"model": b"fine"}


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (
            "os.makedirs('/job/output/artifact'); os.mkfifo('/job/output/artifact/w')",
            "'w': it is a FIFO",
        ),
        (
            "os.makedirs('/job/output/artifact'); os.symlink('/etc', '/job/output/artifact/w')",
            "symlink",
        ),
        (SPARSE, "83886080 bytes in all (0 on disk)"),
        ("os.symlink('/etc', '/job/output/artifact')", "the artifact is not a folder"),
        ("os.makedirs('/job/output/artifact')", "the artifact is empty"),
    ],
)
async def test_a_hostile_artifact_fails_the_job_and_says_why(
    market: Market, node: State, device: str, leave: str, words: str
):
    code = f"import os\n{leave}\n".encode()
    job = market.want(spec(market.offer({"main.py": code}, "script"), devices=[device]))
    status = await _ended(market, job)
    assert (status.exit.code, status.exit.why) == (None, "output")
    assert words in status.detail
    assert market.sent("artifact") == []


async def test_what_a_zombie_sends_is_dropped(market: Market, node: State, device: str):
    script = market.offer({"main.py": TRAIN}, "script")
    job = market.want(spec(script, devices=[device]))
    # Another lease of the job runs elsewhere, and word of it has not come here yet.
    market.fenced.add(job)
    status = await _ended(market, job)
    assert (status.exit.code, status.checkpoint) == (0, None)
    assert market.folders == []


async def test_wishes_said_twice_are_granted_once(market: Market, node: State, device: str):
    job = market.want(spec(market.offer({"main.py": TRAIN}, "script"), devices=[device]))
    for _ in range(20):
        market.push()
        await asyncio.sleep(0.02)
    market.cut()
    await _ended(market, job)
    [logs] = market.sent("log")
    assert logs.files["stdout.log"] == b"hello from the job\n"


async def test_a_commit_whose_answer_is_lost_is_said_again(
    market: Market, node: State, device: str
):
    market.faults.lose_commits = 1
    job = market.want(spec(market.offer({"main.py": TRAIN}, "script"), devices=[device]))
    status = await _ended(market, job)
    assert status.exit.code == 0
    assert market.sent("artifact")


async def test_a_quota_that_is_used_up_is_said(market: Market, node: State, device: str):
    market.faults.refuse_uploads = True
    job = market.want(spec(market.offer({"main.py": TRAIN}, "script"), devices=[device]))
    status = await _ended(market, job)
    assert "the quota is used up" in status.detail


async def test_a_second_job_with_the_same_files_fetches_nothing(
    market: Market, node: State, device: str
):
    script = market.offer({"main.py": b"print()"}, "script")
    base = market.offer({"model": b"weights" * 1000}, "base", public=True)
    for org in (7, 8):
        before = len(market.gets)
        job = market.want(spec(script, base, devices=[device], org=UUID(int=org)))
        await _ended(market, job)
        market.unwant(job)
        fetched = {sha256 for sha256, _ in market.gets[before:]}
        # the other org's script is not shared, though it is the same
        assert fetched == {script.files[0].sha256} | ({base.files[0].sha256} if org == 7 else set())
        await market.until(lambda: market.last().assignments == [])


async def test_a_device_is_never_used_twice(market: Market, node: State, device: str):
    script = market.offer({"main.py": FOREVER}, "script")
    first = market.want(spec(script, devices=[device]))
    await market.until(lambda: market.state(first) == "running")
    second = market.want(spec(script, devices=[device]))
    status = await _ended(market, second)
    assert "still in use" in status.detail
    assert market.state(first) == "running"
