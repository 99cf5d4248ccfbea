"""The market, for a buyer's own programs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from buyers.sdk import files
from buyers.sdk.errors import GridloomError
from buyers.sdk.files import Tell
from buyers.sdk.results import (
    Artifact,
    Dataset,
    Folder,
    Job,
    JobRow,
    Option,
    Quote,
    Receipt,
    StoryLine,
    Update,
    Wallet,
)
from buyers.sdk.transport import Transport

_POLL_S: Final = 0.5
Which = Job | JobRow | UUID | str
"""A job, or its id."""


class Client:
    """One org's view of the market. Without arguments: GRIDLOOM_URL and GRIDLOOM_KEY.

    Every call raises MarketRefused when the market says no, and Unreachable when it does not
    answer. Amounts are decimal text in the market's currency ("2.50").
    """

    def __init__(self, url: str = "", key: str = "") -> None:
        url, key = (
            url or os.environ.get("GRIDLOOM_URL", ""),
            key or os.environ.get("GRIDLOOM_KEY", ""),
        )
        if not url or not key:
            raise GridloomError(
                "say which market, and who you are: Client(url, key), or GRIDLOOM_URL and "
                "GRIDLOOM_KEY in the environment (make a key on the site's page “API keys”)"
            )
        self._http = Transport(url, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The market's address."""
        return self._http.url

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # Money

    def wallet(self) -> Wallet:
        """What can be spent, and what is held for jobs."""
        return self._http.get("wallet/", Wallet)

    def top_up(self, amount: str) -> str:
        """The address of a page on which a person pays `amount` by card."""
        return str(self._http.post("top-ups/", dict, {"amount": amount})["url"])

    # Data and models

    def upload(self, folder: str | Path, name: str, *, tell: Tell = lambda count: None) -> Dataset:
        """A folder (or one file) as a new version of dataset `name`; code goes the same way.

        The same files again are the same version, and nothing is sent.
        """
        root = Path(folder)
        local = files.scan(root)
        declared = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in local]
        started = self._http.post("datasets/", dict, {"name": name, "files": declared})
        for path, put in started["puts"].items():
            source = root if root.is_file() else root / path
            files.send(source, put["url"], put["headers"], tell)
        return self._http.post(f"datasets/{started['id']}/commit/", Dataset)

    def datasets(self) -> list[Dataset]:
        """All versions, newest first."""
        return self._http.pages("datasets/", Dataset)

    def artifacts(self) -> list[Artifact]:
        """Your models, and the public bases."""
        return self._http.pages("artifacts/", Artifact)

    # Orders

    def quote(self, **job: Any) -> Quote:
        """Where a job could run, for how long and how much: recipe, base, dataset, budget, …"""
        return self._http.post("quotes/", Quote, job)

    def take(self, quote: Quote, option: int | Option | None = None) -> Job:
        """Starts one option at once, at the price shown; the best that fits if none is named."""
        if option is None:
            fitting = [each for each in quote.options if each.fits]
            if not fitting:
                reasons = "; ".join(f"{each.node}: {each.why}" for each in quote.options)
                raise GridloomError(f"no option of this quote fits: {reasons or 'none is open'}")
            option = fitting[0]
        index = option.index if isinstance(option, Option) else option
        return self._http.post(f"quotes/{quote.id}/take/", Job, {"option": index})

    def bid(self, **job: Any) -> Job:
        """Leaves a job to the rounds, within its limits."""
        return self._http.post("jobs/", Job, job)

    # Jobs

    def jobs(self, state: str = "") -> list[JobRow]:
        """Your jobs, newest first."""
        params = {"state": state} if state else {}
        return self._http.pages("jobs/", JobRow, **params)

    def job(self, job: Which) -> Job:
        """A job as it now is."""
        return self._http.get(f"jobs/{_id(job)}/", Job)

    def watch(self, job: Which, *, every_s: float = _POLL_S) -> Iterator[Update]:
        """The job and its curves, again and again until it is at rest."""
        after = ""
        while True:
            now = self.job(job)
            curve = self._http.get(f"jobs/{_id(job)}/metrics/", dict, after=after)
            after = str(curve["next"])
            yield Update(now, list(curve["points"]))
            if now.is_at_rest:
                return
            time.sleep(every_s)

    def wait(self, job: Which) -> Job:
        """Waits until the job is at rest."""
        now = self.job(job)
        while not now.is_at_rest:
            time.sleep(_POLL_S)
            now = self.job(job)
        return now

    def cancel(self, job: Which) -> Job:
        """Ends a job for good."""
        return self._http.post(f"jobs/{_id(job)}/cancel/", Job)

    def stop(self, job: Which) -> Job:
        """Saves and stops a job; `resume` goes on with it."""
        return self._http.post(f"jobs/{_id(job)}/stop/", Job)

    def resume(self, job: Which, *, budget: str = "") -> Job:
        """Queues a stopped job again, perhaps with a new budget in all."""
        return self._http.post(f"jobs/{_id(job)}/resume/", Job, {"budget": budget})

    def log(self, job: Which) -> str:
        """The end of its output."""
        return str(self._http.get(f"jobs/{_id(job)}/log/", dict)["text"])

    def story(self, job: Which) -> list[StoryLine]:
        """What happened to it, oldest first."""
        return self._http.get(f"jobs/{_id(job)}/story/", list[StoryLine])

    def receipt(self, job: Which) -> Receipt:
        """What it cost, and who got what of it."""
        return self._http.get(f"jobs/{_id(job)}/receipt/", Receipt)

    def download(self, job: Which, folder: str | Path, *, tell: Tell = lambda count: None) -> Path:
        """The job's artifact, each file checked by its hash; goes on where it broke off."""
        target = Path(folder)
        root = target.resolve()
        found = self._http.get(f"jobs/{_id(job)}/artifact/", Folder)
        for file in found.files:
            path = (target / file.path).resolve()
            if not path.is_relative_to(root):
                raise GridloomError(f"the market names a file outside of the folder: {file.path}")
            files.fetch(file, path, tell)
        return target


def _id(job: Which) -> str:
    return str(job.id if isinstance(job, Job | JobRow) else job)
