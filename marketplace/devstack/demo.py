"""`make demo`: from an idle machine to a trained, paid-for model, as a buyer would live it.

Everything is real: the payment goes through the card page of Stripe's stand-in, the data through
presigned URLs, the training through the sandbox of a supplier's node, the money through the
ledger. If a step fails, the command says which and exits 1.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx

from buyers.sdk import Client, GridloomError
from buyers.sdk.job_shapes import Job
from marketplace.devstack import base_model, corpus
from marketplace.devstack.demo_screen import Screen
from marketplace.devstack.live import LiveSite, live_site
from marketplace.devstack.process import StackError
from marketplace.devstack.stack import DATA, ROOT

CARD: Final = "4242424242424242"
TOP_UP: Final = "20.00"
BUDGET: Final = "0.25"
# Some 45 s of one core: the pairs are short, so a short `max_length` keeps the memory booked
# (and quoted) small.
TRAINING: Final = {
    "steps": 20,
    "batch_size": 4,
    "rank": 16,
    "learning_rate": 0.002,
    "max_length": 128,
    "checkpoint_every": 10,
    "evaluate_samples": 32,
    "answers": 1,
    "answer_tokens": 32,
}
_PAID_WITHIN_S: Final = 30
# What a second buyer's errand may be: their own file, run as it is.
_SCRIPT: Final = '''\
"""Estimates pi by throwing darts; reports its progress, and leaves its answer behind."""

import json
import os
import random

hits, throws = 0, 0
with open(os.environ["GRIDLOOM_METRICS"], "a") as metrics:
    for step in range(1, 11):
        for _ in range(50_000):
            hits += random.random() ** 2 + random.random() ** 2 <= 1
            throws += 1
        error = abs(4 * hits / throws - 3.141592653589793)
        metrics.write(json.dumps({"step": step, "total_steps": 10, "loss": error}) + "\\n")
        metrics.flush()
folder = os.path.join(os.environ["GRIDLOOM_OUTPUT"], "artifact")
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "pi.txt"), "w") as answer:
    answer.write(f"{4 * hits / throws}\\n")
'''


def main(folder: Path = DATA) -> int:
    """Runs the demo on the stack in `folder`; 0 if every step came out as it should."""
    began = time.monotonic()
    screen = Screen()
    try:
        screen.title()
        with contextlib.ExitStack() as running:
            with screen.step("The market starts: database, broker, storage, payments, the site"):
                site = running.enter_context(live_site(folder, screen.note))
            _run(site, screen)
        screen.done(time.monotonic() - began)
    except (StackError, GridloomError, base_model.BaseModelError) as error:
        screen.failed(str(error))
        return 1
    return 0


def _run(site: LiveSite, screen: Screen) -> None:
    buyer = next(account for account in site.accounts if account["role"] == "buyer")
    client = Client(site.stack.site_url, buyer["key"])
    with _base_in_the_making(site.stack.folder) as making:
        with screen.step("Two suppliers' machines enrol, prove themselves and go on offer"):
            site.start_nodes(screen.note)
        with screen.step(f"{buyer['org']} tops up ${TOP_UP} by card"):
            balance = pay(client, TOP_UP)
            screen.note(f"The wallet holds ${balance / 1e6:,.2f}.")
        with screen.step("The base model is published, once, for everybody"):
            base = _publish(site, making)
    with screen.step("A dataset of the standard library's docstrings is made and uploaded"):
        data = _upload(site, client, screen)
    with screen.step("The job is quoted, and the best offer taken"):
        job = _take(site, client, screen, data)
    with screen.step("A second, small job bids and waits for a round"):
        errand = _bid(site, client)
    with screen.step("It trains on somebody else's machine"):
        job = _watch(client, job, screen)
    with screen.step("The second job has been matched, run and settled too"):
        errand = client.wait(errand)
        _require(errand, "succeeded")
        screen.note(f"A round placed it on {errand.nodes[0].node}.")
    _keep(site, client, screen, job, base)


def _take(site: LiveSite, client: Client, screen: Screen, data: str) -> Job:
    quote = client.quote(
        name="Teach a model our codebase", recipe="lora", base=base_model.NAME, dataset=data,
        budget=BUDGET, parameters=TRAINING,
    )  # fmt: skip
    screen.options(quote)
    if quote.best is None:
        reasons = "; ".join(f"{option.node}: {option.why}" for option in quote.options)
        raise StackError(f"No machine here can run the job: {reasons}")
    job = client.take(quote, quote.best.index)
    screen.note(f"The job's page: {site.stack.site_url}/buy/jobs/{job.id}/")
    return job


def _keep(site: LiveSite, client: Client, screen: Screen, job: Job, base: Path) -> None:
    """The model comes home, and is used; the books are checked."""
    with screen.step("The model is downloaded, checked by hash, and used"):
        folder = client.download(job, site.stack.folder / "downloads" / str(job.id))
        evaluation = json.loads((folder / "evaluation.json").read_text())
        answer = _use(base, folder, evaluation["answers"][0]["prompt"])
    with screen.step("The books balance"):
        (printed,) = site.supervisor.run(site.stack.command("audit"))
        if printed.strip() != "0":
            raise StackError(f"the ledger's sum is {printed.strip()}, not 0")
    receipt = client.receipt(job)
    screen.summary(evaluation=evaluation, answer=answer, receipt=receipt, folder=folder)


@contextlib.contextmanager
def _base_in_the_making(data: Path) -> Iterator["subprocess.Popen[str]"]:
    """Converts the base beside everything else: it takes a core for a while, the first time."""
    command = [sys.executable, "-m", "marketplace.devstack.base_model", str(data / "cache")]
    making = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield making
    finally:
        if making.poll() is None:
            making.kill()
        making.wait()


def _publish(site: LiveSite, making: "subprocess.Popen[str]") -> Path:
    said, _ = making.communicate()
    if making.returncode:
        raise StackError(f"The base model could not be made: {said.strip()[-2000:]}")
    folder = base_model.ensure(site.stack.folder / "cache")
    site.supervisor.run(
        site.stack.command(
            "publish_base", str(folder),
            "--name", base_model.NAME, "--licence", base_model.LICENSE,
        )
    )  # fmt: skip
    return folder


def pay(client: Client, amount: str) -> int:
    """Opens the card page and pays on it, as a browser would; waits for the webhook's money.

    Returns the wallet's balance in micros; raises StackError if the card or the money is lost.
    """
    before = client.wallet().balance_micros
    page = client.top_up(amount)
    card = {
        "email": "buyer@gridloom.example",
        "number": CARD,
        "expiry": "12 / 34",
        "cvc": "123",
        "name": "A. Buyer",
    }
    with httpx.Client(timeout=20, follow_redirects=False) as browser:
        browser.get(page).raise_for_status()
        paid = browser.post(page, data=card)
    if paid.status_code not in (302, 303):
        raise StackError(f"The card page did not take the card: {paid.text[:500]}")
    deadline = time.monotonic() + _PAID_WITHIN_S
    while (balance := client.wallet().balance_micros) <= before:
        if time.monotonic() > deadline:
            raise StackError("The card was charged, but the wallet never heard of it.")
        time.sleep(0.2)
    return balance


def _upload(site: LiveSite, client: Client, screen: Screen) -> str:
    folder = site.stack.folder / "cache" / "stdlib-docstrings"
    made = corpus.write(folder)
    dataset = client.upload(folder, "stdlib-docstrings")
    screen.note(
        f"{made.train:,} pairs to learn from, {made.held_out} of {made.held_out_modules} other "
        f"modules held out."
    )
    return str(dataset.id)


def _bid(site: LiveSite, client: Client) -> Job:
    folder = site.stack.folder / "cache" / "errand"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(_SCRIPT)
    script = client.upload(folder, "errand")
    return client.bid(
        name="Throw darts at pi", recipe="script", script=str(script.id), budget="0.10",
        parameters={"entry": "main.py"}, memory_gib=1, disk_gib=1, hours=0.02, limit="1.50",
    )  # fmt: skip


def _watch(client: Client, job: Job, screen: Screen) -> Job:
    with screen.training() as live:
        for update in client.watch(job):
            live(update)
            job = update.job
    _require(job, "succeeded")
    return job


def _require(job: Job, state: str) -> None:
    if job.state != state:
        raise StackError(f"The job “{job.name}” is {job.state}: {job.words}")


def _use(base: Path, artifact: Path, prompt: str) -> str:
    """What the downloaded model says, loaded as its owner would."""
    command = [sys.executable, "-m", "marketplace.devstack.ask_model"]
    asked = subprocess.run(
        [*command, str(base), str(artifact), prompt], cwd=ROOT, capture_output=True, text=True
    )
    if asked.returncode:
        raise StackError(f"The downloaded model could not be used: {asked.stderr[-2000:]}")
    return asked.stdout.strip()
