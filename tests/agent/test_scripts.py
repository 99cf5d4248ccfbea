"""Scripts that know nothing of us, on a real node: each does the right thing."""

from uuid import UUID

import pytest

from agent.config import State
from agent.protocol import Input, Status
from tests.agent import node as nodes
from tests.agent.conftest import resume, spec
from tests.agent.market import Market

# As in Hugging Face's own examples: a folder of its own choosing, relative to where it runs.
TRAINER = b"""
import json, time
import torch
from transformers import Trainer, TrainingArguments

class Rows(torch.utils.data.Dataset):
    rows = json.load(open("rows.json"))
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, index):
        time.sleep(0.05)
        return {"x": torch.tensor([float(self.rows[index])]), "labels": torch.tensor([1.0])}

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, x, labels):
        out = self.layer(x)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}

args = TrainingArguments(
    output_dir="./results", max_steps=STEPS, save_steps=2, logging_steps=1, save_total_limit=1,
    per_device_train_batch_size=4, report_to=[], use_cpu=True, dataloader_pin_memory=False,
)
trainer = Trainer(Line(), args, train_dataset=Rows())
trainer.train()
trainer.save_model("./final")
"""
# Saves over the same file again and again, and looks for it when it begins.
LOOP = b"""
import os, time, torch
state = {"step": 0, "weight": torch.zeros(1000)}
if os.path.exists("out/ckpt.pt"):
    state = torch.load("out/ckpt.pt")
print("begins at", state["step"], flush=True)
os.makedirs("out", exist_ok=True)
torch.save(state | {"step": state["step"] + 1}, "out/ckpt.pt")
while not os.path.exists("go"):
    time.sleep(0.05)
"""


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


async def _ended(market: Market, job: UUID) -> Status:
    return await market.until(lambda: market.settled(job))


def _again(market: Market, sent: object) -> Input:
    """What was sent, to be fetched."""
    return market.offer(sent.files, "resume")


def _printed(market: Market) -> str:
    return market.sent("log")[-1].files["stdout.log"].decode()


@pytest.mark.timeout(180)
async def test_an_unmodified_trainer_script_is_saved_and_goes_on_where_it_looks(
    market: Market, node: State, device: str
):
    rows = [number / 8 for number in range(8)]
    files = {"main.py": TRAINER.replace(b"STEPS", b"1000"), "rows.json": str(rows).encode()}
    first = market.want(spec(market.offer(files, "script"), devices=[device], memory_bytes=2 << 30))
    await market.until(lambda: market.sent("checkpoint"), 120)
    market.drain(first, "reclaimed", 0)
    status = await _ended(market, first)
    assert status.exit.signal == 9
    saved = market.sent("checkpoint")[-1]
    assert saved.place == f"work/results/checkpoint-{saved.step}"
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(saved.files)
    assert 0 < saved.running_ms <= status.running_ms
    assert {point.step for point in market.metrics} >= set(range(1, saved.step + 1))
    assert "loss" in market.metrics[0].values
    market.unwant(first)
    await market.until(lambda: market.last().assignments == [])
    market.metrics.clear()
    market.folders.clear()

    more = str(saved.step + 3).encode()
    goes_on = TRAINER.replace(b"STEPS", more).replace(
        b"train()", b"train(resume_from_checkpoint=True)"
    )
    second = market.want(
        spec(
            market.offer(files | {"main.py": goes_on}, "script"), devices=[device],
            memory_bytes=2 << 30, resume=resume(saved.step, _again(market, saved), saved.place),
        )
    )  # fmt: skip
    status = await _ended(market, second)
    assert status.exit.code == 0, market.logs
    [artifact] = market.sent("artifact")
    assert "final/model.safetensors" in artifact.files
    last = f"results/checkpoint-{saved.step + 3}/trainer_state.json"
    assert last in artifact.files
    assert "main.py" not in artifact.files
    assert all(one.step > saved.step for one in market.sent("checkpoint"))


@pytest.mark.timeout(120)
async def test_a_file_that_is_saved_over_and_over_is_kept_and_laid_back(
    market: Market, node: State, device: str
):
    script = market.offer({"main.py": LOOP}, "script")
    first = market.want(spec(script, devices=[device], memory_bytes=1 << 30))
    saved = (await market.until(lambda: market.sent("checkpoint")))[-1]
    assert (saved.place, list(saved.files)) == ("work", ["out/ckpt.pt"])
    market.drain(first, "reclaimed", 0)
    await _ended(market, first)
    market.unwant(first)
    given = resume(saved.step, _again(market, saved), saved.place)
    second = market.want(spec(script, devices=[device], memory_bytes=1 << 30, resume=given))
    sent = await market.until(
        lambda: len(market.sent("checkpoint")) > 1 and market.sent("checkpoint")
    )
    assert sent[-1].step == saved.step + 1
    market.drain(second, "reclaimed", 0)
    await _ended(market, second)
    assert _printed(market) == "begins at 1\n"


async def test_a_script_that_knows_nothing_at_all_leaves_what_it_made(
    market: Market, node: State, device: str
):
    code = b"open('answer.txt', 'w').write(open('question.txt').read() + ' 42')"
    files = {"lib/main.py": code, "question.txt": b"what is it?"}
    parameters = {"entry": "lib/main.py", "args": []}
    job = market.want(spec(market.offer(files, "script"), devices=[device], parameters=parameters))
    assert (await _ended(market, job)).exit.code == 0
    [artifact] = market.sent("artifact")
    assert artifact.files == {"answer.txt": b"what is it? 42"}


async def test_what_is_left_half_way_is_not_taken_for_a_result(
    market: Market, node: State, device: str
):
    code = b"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open("half.txt", "w").write("half")
print("begun", flush=True)
while True: time.sleep(0.05)
"""
    job = market.want(spec(market.offer({"main.py": code}, "script"), devices=[device]))
    await market.until(lambda: market.logs)
    market.drain(job, "reclaimed", 20)
    assert (await _ended(market, job)).exit.code == 0
    assert market.sent("artifact") == []


async def test_a_project_that_does_not_fit_its_disk_is_refused(
    market: Market, node: State, device: str
):
    files = {"main.py": b"", "data.bin": bytes(3 << 20)}
    script = market.offer(files, "script")
    job = market.want(spec(script, devices=[device], disk_bytes=2 << 20))
    status = await _ended(market, job)
    assert status.exit.why == "refused"
    assert "it books 2 MiB of disk" in status.detail


async def test_a_checkpoint_that_would_be_laid_elsewhere_is_refused(
    market: Market, node: State, device: str
):
    given = resume(1, market.offer({"w": b"x"}, "resume"), "work/../../etc")
    script = market.offer({"main.py": b""}, "script")
    job = market.want(spec(script, devices=[device], resume=given))
    status = await _ended(market, job)
    assert (status.exit.why, "outside of its folders" in status.detail) == ("refused", True)


async def test_a_checkpoint_with_the_wrong_bytes_is_told_from_a_node_that_can_not_fetch(
    market: Market, node: State, device: str
):
    kept = market.offer({"weights": b"as they were"}, "resume")
    market.objects[kept.files[0].sha256] = b"as they are!"
    script = market.offer({"main.py": b""}, "script")
    job = market.want(spec(script, devices=[device], resume=resume(7, kept)))
    status = await _ended(market, job)
    assert status.exit.why == "checkpoint"
    assert "the checkpoint of step 7 can't be read: weights is not what" in status.detail
    assert market.claims == []
