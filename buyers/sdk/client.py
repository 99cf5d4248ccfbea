"""The market from a program: quote, take or bid, watch, download."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import httpx
import msgspec
from msgspec import Raw

from buyers.sdk import shell as shells
from buyers.sdk import transfer
from buyers.sdk.errors import Damaged, GridloomError, MarketRefused, Unreachable
from buyers.sdk.http import Http
from buyers.sdk.job_shapes import (
    Change,
    Checkpoint,
    Job,
    JobRow,
    Log,
    Option,
    Points,
    Quote,
    Receipt,
    Update,
)
from buyers.sdk.round_shapes import Proof, Round
from buyers.sdk.secret import Secret
from buyers.sdk.shapes import (
    Artifact,
    Base,
    Begun,
    Dataset,
    Fetch,
    File,
    Folder,
    Model,
    Recipe,
    Report,
    TopUp,
    Transfer,
    Wallet,
)
from buyers.sdk.shell import Shell
from buyers.sdk.transfer import Progress
from buyers.sdk.waiting import Helps, Told

__all__ = [
    "Artifact", "Base", "Client", "Damaged", "Dataset", "Fetch", "GridloomError", "Helps", "Job", "MarketRefused", "Model", "Option",
    "Quote", "Receipt", "Told", "Unreachable", "Update", "Wallet",
]  # fmt: skip

JobId = Job | JobRow | UUID | str
"""A job, or its id."""
# Fresh URLs are asked for so often before an upload or a download gives up.
_RENEWALS: Final = 20


class Client:
    """One org's way into one market, by an API key with the scope `buy` (top-ups: `money`). Without
    one (None) only rounds can be had, which are public.

    Calls raise MarketRefused where the market says no, Unreachable where it says nothing. What
    is safe to send twice is tried again for `patience_s` seconds, so that a market that is
    restarted meanwhile is not noticed.
    """

    def __init__(self, url: str, key: str | None, *, patience_s: float = 30.0) -> None:
        self._http = Http(url, key, patience_s=patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def wallet(self) -> Wallet:
        """What can be spent."""
        return self._http.get("wallet/", Wallet)

    def statement(self) -> list[Transfer]:
        """Every transfer into and out of the wallet, the latest first."""
        return self._http.pages("wallet/statement/", Transfer)

    def top_up(self, amount: str) -> str:
        """The address of the page on which a person pays `amount` ("25.00") by card."""
        return self._http.post("top-ups/", TopUp, {"amount": amount}, again=False).url

    def upload(
        self, folder: str | Path, name: str, *, progress: Progress = lambda size: None
    ) -> Dataset:
        """A folder, or one file, as a new version of `name`; the same content is the same version.

        Hidden files and `__pycache__` are left out. An upload that was cut off goes on.
        """
        files = transfer.scan(Path(folder))
        declared = [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
            for file in transfer.declare(files)
        ]
        for _ in range(_RENEWALS):
            begun = self._http.post("datasets/", Begun, {"name": name, "files": declared})
            try:
                transfer.send(files, begun.puts, progress)
            except transfer.Expired:
                continue
            made = self._http.post(f"datasets/{begun.id}/commit/", Dataset)
            return self._checked(made)
        raise Unreachable("the market's storage goes on refusing the upload; check the clocks")

    def dataset(self, reference: UUID | str) -> Report:
        """A version by its id, its name (the latest) or name@version: what was found in it."""
        name, at, version = str(reference).rpartition("@")
        pk = reference if isinstance(reference, UUID) or _is_uuid(reference) else None
        if pk is None:
            named = self._http.pages("datasets/", Dataset, name=name if at else str(reference))
            found = [each for each in named if not at or str(each.version) == version]
            if not found:
                raise GridloomError(f"there is no dataset {reference!r}; `gridloom datasets`")
            pk = found[0].id
        return self._http.get(f"datasets/{pk}/report/", Report)

    def datasets(self) -> list[Dataset]:
        """All versions, the newest first."""
        return self._http.pages("datasets/", Dataset)

    def artifacts(self) -> list[Artifact]:
        """The org's models, and the public bases."""
        return self._http.pages("artifacts/", Artifact)

    def bases(self) -> list[Base]:
        """The models that you may start from and that no job made here."""
        return self._http.get("bases/", list[Base])

    def add_base(
        self, repo: str, *, revision: str = "", hub: str = "", token: str = "", right: str = ""
    ) -> Fetch:
        """Has a base fetched from a hub; `fetch` tells how far it is.

        `token` opens a private or gated repository; `right` says why you may use one that names
        no licence.
        """
        wish = {"repo": repo, "revision": revision, "hub": hub, "token": token, "right": right}
        given = {name: value for name, value in wish.items() if value}
        return self._http.post("fetches/", Fetch, given)

    def fetch(self, fetch: Fetch | UUID | str) -> Fetch:
        """A base on its way, as it is now."""
        found = fetch.id if isinstance(fetch, Fetch) else _uuid(fetch, "fetch")
        return self._http.get(f"fetches/{found}/", Fetch)

    def accept_licence(self, base: UUID | str, licence: str) -> Base:
        """Accepts the licence of a fetched base, for your whole organisation."""
        path = f"artifacts/{_uuid(base, 'base')}/licence/"
        return self._http.post(path, Base, {"licence": licence})

    def model(self, artifact: UUID | str) -> Model:
        """A model, by its id or its job's: what it can do before and after, and what it took."""
        return self._http.get(f"artifacts/{self._artifact(artifact)}/model/", Model)

    def promote(self, artifact: UUID | str, *, reason: str = "") -> Artifact:
        """Makes a model the org's current one of its name; `reason` is for one that dropped."""
        path = f"artifacts/{self._artifact(artifact)}/promote/"
        return self._http.post(path, Artifact, {"reason": reason}, again=False)

    def recipes(self) -> dict[str, Recipe]:
        """What can be run: inputs, and the JSON Schema of the parameters."""
        return self._http.get("recipes/", dict[str, Recipe])

    def secrets(self) -> list[Secret]:
        """What jobs can be given, by name; values are never shown again."""
        return self._http.get("secrets/", list[Secret])

    def set_secret(self, name: str, value: str, *, trust: str = "verified") -> Secret:
        """Keeps a value for jobs on sites of at least this trust, in place of an older one."""
        told = {"name": name, "value": value, "trust": trust}
        return self._http.post("secrets/", Secret, told)

    def forget_secret(self, name: str) -> None:
        """Raises GridloomError if there is none of this name."""
        for secret in self.secrets():
            if secret.name == name:
                return self._http.delete(f"secrets/{secret.id}/")
        raise GridloomError(f"you have no secret {name!r}; `gridloom secret list` shows them")

    def quote(self, **job: Any) -> Quote:
        """Where a job could run and what it would cost, before paying. See `bid` for its fields."""
        return self._http.post("quotes/", Quote, job)

    def take(self, quote: Quote, option: int) -> Job:
        """Starts one option of a quote, at its price."""
        return self._http.post(f"quotes/{quote.id}/take/", Job, {"option": option})

    def bid(self, **job: Any) -> Job:
        """Leaves a job to the rounds: they find it the best place within its limits.

        Fields: recipe ("sft", "dpo", "lora", "script" …), budget ("2.50", a wall), base, dataset,
        script, parameters, limit or limits (per GPU-hour), gpus, gpus_max, memory_gib, disk_gib, hours,
        regions, trust, tier, service, deadline, environment, seed, name, egress (names to reach), secrets
        (names of yours), packages (a lock; "none"), image (a container image for a script).
        """
        return self._http.post("jobs/", Job, job)

    def shell(self, job: JobId) -> AbstractContextManager[Shell]:
        """A shell in a running job; the key needs the scope `attach`. What is typed is kept."""
        return shells.opened(self._http.url, self._http.key, str(_id(job)))

    def jobs(self) -> list[JobRow]:
        """All jobs, the newest first."""
        return self._http.pages("jobs/", JobRow)

    def job(self, job: JobId) -> Job:
        """A job as it is now."""
        return self._http.get(f"jobs/{_id(job)}/", Job)

    def watch(self, job: JobId, *, every_s: float = 1.0) -> Iterator[Update]:
        """A job as it goes, until it rests: its figures, and what its curves have gained."""
        after, last = "", dict[str, float]()
        while True:
            now = self.job(job)
            page = self._http.get(f"jobs/{now.id}/metrics/", Points, after=after)
            points = [
                {**point.values, "step": point.step, "epoch": point.epoch} for point in page.points
            ]
            # The last point comes again, as it may have grown.
            fresh = [point for point in points if point != last]
            after, last = page.next, points[-1] if points else last
            yield Update(now, fresh)
            if now.rests:
                return
            time.sleep(every_s)

    def wait(self, job: JobId, *, every_s: float = 1.0) -> Job:
        """The job once it rests."""
        found = self.job(job)
        while not found.rests:
            time.sleep(every_s)
            found = self.job(job)
        return found

    def metrics(self, job: JobId, *, after: str = "") -> Points:
        """The job's curves: of each step the newest; after an answer's `next`, all points since."""
        return self._http.get(f"jobs/{_id(job)}/metrics/", Points, after=after)

    def log(self, job: JobId) -> str:
        """The end of the job's output."""
        return self._http.get(f"jobs/{_id(job)}/log/", Log).text

    def story(self, job: JobId) -> list[Change]:
        """What happened to the job, oldest first."""
        return self._http.get(f"jobs/{_id(job)}/story/", list[Change])

    def receipt(self, job: JobId) -> Receipt:
        """What the job has cost so far."""
        return self._http.get(f"jobs/{_id(job)}/receipt/", Receipt)

    def checkpoints(self, job: JobId) -> list[Checkpoint]:
        """States that the job can go on from, furthest first."""
        return self._http.get(f"jobs/{_id(job)}/checkpoints/", list[Checkpoint])

    def accept(self, job: JobId, change: Helps) -> Job:
        """Makes one of the changes that a waiting job's `told` lists."""
        wanted = {"term": change.term, "to": change.to}
        if change.term == "limit":
            wanted["gpu_class"] = change.gpu_class
        return self._http.post(f"jobs/{_id(job)}/accept/", Job, wanted, again=False)

    def round(self, round: UUID | str) -> Round:
        """A round as it was published."""
        return self._http.get(f"market/rounds/{_uuid(round, 'round')}/", Round)

    def download_round(self, round: UUID | str, folder: Path) -> list[Path]:
        """All that a released round published: ROUND.json, BOOK.npz, MATCHES.npz, by their hashes.

        Raises GridloomError where they can't be had.
        """
        said = self._http.get(f"market/rounds/{_uuid(round, 'round')}/", Raw)
        found = msgspec.json.decode(said, type=Round)
        if found.record is None or not found.record.files:
            when = f"; they are public from {found.record.releases_at} on" if found.record else ""
            raise GridloomError(f"the book and matches of this round can't be had{when}")
        files = [File(n, f.bytes, f.sha256, f.url) for n, f in sorted(found.record.files.items())]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ROUND.json").write_bytes(said)
        with httpx.Client(timeout=httpx.Timeout(120, connect=10)) as http:
            fetched = [transfer.fetch(http, file, folder, lambda size: None) for file in files]
        return [folder / "ROUND.json", *fetched]

    def proof(self, subject: JobId, *, round: UUID | str = "", node: bool = False) -> Proof:
        """The row of a job, or of a node of yours, in a round (the last one if none is named).

        `buyers.sdk.proofs.holds` says whether it leads to the root that it names. For nodes the key
        needs the scope `supply`.
        """
        inside = f"{_uuid(round, 'round')}/" if round else ""
        return self._http.get(f"{'nodes' if node else 'jobs'}/{_id(subject)}/proof/{inside}", Proof)

    def cancel(self, job: JobId) -> Job:
        """Ends a job for good."""
        return self._http.post(f"jobs/{_id(job)}/cancel/", Job, again=False)

    def stop(self, job: JobId) -> Job:
        """Saves and stops a job, which can be resumed."""
        return self._http.post(f"jobs/{_id(job)}/stop/", Job, again=False)

    def resume(self, job: JobId, *, budget: str = "") -> Job:
        """Queues a stopped job again from its last checkpoint, perhaps with a new budget in all."""
        return self._http.post(f"jobs/{_id(job)}/resume/", Job, {"budget": budget}, again=False)

    def download(
        self, job: JobId, folder: str | Path, *, progress: Progress = lambda size: None
    ) -> Path:
        """What the job made, into `folder`, every file checked; returns the folder.

        A download that was cut off goes on where it was; what is there already stays.
        """
        return self._download(f"jobs/{_id(job)}/artifact/", Path(folder), progress)

    def download_checkpoint(
        self, job: JobId, checkpoint: Checkpoint, folder: str | Path, *,
        progress: Progress = lambda size: None,
    ) -> Path:  # fmt: skip
        """A checkpoint's files, like `download`."""
        path = f"jobs/{_id(job)}/checkpoints/{checkpoint.id}/"
        return self._download(path, Path(folder), progress)

    def _artifact(self, reference: UUID | str) -> str:
        """A model's id, by itself or by its job's."""
        pk = _uuid(reference, "artifact")
        made = [each for each in self.artifacts() if pk in (str(each.id), str(each.job))]
        return str(made[0].id) if made else pk

    def _checked(self, made: Dataset) -> Dataset:
        """The version once it has been looked through; raises MarketRefused with the reason."""
        while made.state == "checking":
            time.sleep(1)
            made = self.dataset(made.id)
        if made.state == "refused":
            raise MarketRefused(made.detail, code="invalid", field="files", status=400)
        return made

    def _download(self, path: str, folder: Path, progress: Progress) -> Path:
        left = set[str]()
        with httpx.Client(timeout=httpx.Timeout(120, connect=10)) as http:
            for turn in range(_RENEWALS):
                listed = self._http.get(path, Folder).files
                left = left if turn else {file.path for file in listed}
                try:
                    for file in listed:
                        if file.path in left:
                            transfer.fetch(http, file, folder, progress)
                            left.remove(file.path)
                    return folder
                except transfer.Expired:
                    continue
        raise Unreachable("the market's storage goes on refusing the download; check the clocks")


def _id(job: JobId) -> str:
    return _uuid(job.id if isinstance(job, JobRow) else job, "job")


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _uuid(found: UUID | str, kind: str) -> str:
    try:
        return str(found if isinstance(found, UUID) else UUID(found))
    except ValueError:
        raise GridloomError(f"{found!r} is no {kind}'s id; `gridloom {kind}s` lists them") from None
