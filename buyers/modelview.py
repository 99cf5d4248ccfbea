"""What there is to say of a model, read once: its page, its card and its JSON all show this."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.conf import settings

from agent.recipes.verdict import Evaluation
from buyers import evaluations, family, licences, reads
from buyers.family import Kin
from buyers.hub_models import LicenceAcceptance
from buyers.models import Artifact, Folder, Job
from marketplace.core import words
from marketplace.core.money import format_amount
from marketplace.models import Org, StateChange
from scheduler import receipts
from scheduler.receipts import Receipt

_BETTER: Final = {"loss": "lower is better", "accuracy": "higher is better",
                  "reward": "higher is better"}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One row of the table: a domain before and after."""

    name: str
    measure: str
    better: str
    rows: int
    before: float | None
    after: float | None
    margin: float
    dropped: bool

    @property
    def change(self) -> float | None:
        """As a share of before."""
        if self.before is None or self.after is None or not self.before:
            return None
        return (self.after - self.before) / abs(self.before)


@dataclass(frozen=True)
class ModelView:
    """A model with all its page shows."""

    artifact: Artifact
    job: Job | None
    evaluation: Evaluation | None
    receipt: Receipt | None
    kin: Sequence[Kin]
    story: Sequence[StateChange]
    accepted: LicenceAcceptance | None

    @property
    def measured(self) -> list[Measured]:
        """The target first, then the domains that must not be forgotten."""
        return [
            Measured(
                name=each.name, measure=each.measure, better=_BETTER[each.measure],
                rows=each.rows, before=each.before, after=each.after, margin=each.margin,
                dropped=each.verdict == "dropped",
            )
            for each in (self.evaluation.domains if self.evaluation else ())
        ]  # fmt: skip

    @property
    def dropped(self) -> list[str]:
        """What keeps it from being promoted without a reason."""
        return self.evaluation.dropped if self.evaluation else []

    @property
    def may_continue(self) -> bool:
        """Whether a job may start from it."""
        return reads.why_not_from(self.artifact) == ""

    @property
    def home(self) -> str:
        """The base's page at its hub, at the commit that is kept here; empty for others."""
        hub, _, repo = self.artifact.repository.partition(":")
        url = settings.HUBS.get(hub, "")
        return f"{url}/{repo}/tree/{self.artifact.commit}" if url else ""

    @property
    def card(self) -> str:
        """What made the model and what that took, as Markdown."""
        return card(self)

    @property
    def leases(self) -> list[int]:
        """The epochs that it took."""
        return sorted({line.epoch for line in self.receipt.lines}) if self.receipt else []


def look(artifact: Artifact, org: Org) -> ModelView:
    """Reads it all, as `org` may see it; a fixed number of queries."""
    job = None
    if artifact.job_id:
        named = Job.objects.of(org).select_related(
            "base", "dataset", "script", "mix", "other", "third"
        )
        job = named.filter(pk=artifact.job_id).first()
    return ModelView(
        artifact=artifact,
        job=job,
        evaluation=evaluations.of(artifact),
        receipt=receipts.receipt(job) if job else None,
        kin=family.tree(artifact, org),
        story=list(artifact.story()),
        accepted=licences.accepted(org, artifact) if artifact.source else None,
    )


def card(view: ModelView) -> str:
    """What made the model and what that took, as Markdown.

    Beside the model's own README, which its manifest's hash holds: the cost of a run is known
    only after its model has been sent.
    """
    facts = _facts(view)
    rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in facts if value)
    parts = [f"# {_cell(view.artifact.name)}\n", f"| | |\n|---|---|\n{rows}"]
    if view.job:
        text = json.dumps(view.job.parameters, indent=2, sort_keys=True)
        parts.append(f"## Parameters\n\n```json\n{text}\n```\n")
    if view.measured:
        parts.append(
            "## Before and after\n\n| | measure | rows | before | after | verdict |\n"
            "|---|---|---|---|---|---|\n"
            + "".join(
                f"| {_cell(each.name)} | {each.measure} ({each.better}) | {each.rows} "
                f"| {_figure(each.before)} | {_figure(each.after)} "
                f"| {'dropped' if each.dropped else 'kept'} (margin {each.margin:.0%}) |\n"
                for each in view.measured
            )
        )
    return "\n".join(parts)


def _facts(view: ModelView) -> list[tuple[str, str]]:
    artifact, job, receipt = view.artifact, view.job, view.receipt
    found = [("Artifact", str(artifact.pk)), ("SHA-256 of the manifest", artifact.sha256)]
    if artifact.source:
        found += [("From", artifact.source), ("Licence", artifact.licence)]
    if job is None or receipt is None:
        return found
    found += [
        *((name, f"{each} ({each.sha256})") for name, each in _read_by(job)),
        ("Recipe", job.recipe),
        ("Seed", str(job.seed)),
        ("Job", str(job.pk)),
        ("Leases", ", ".join(map(str, view.leases))),
        ("GPUs", ", ".join(sorted({f"{line.gpus} × {line.gpu_class}" for line in receipt.lines}))),
        ("GPU-seconds", f"{receipt.gpu_seconds:,}"),
        ("Cost", f"${format_amount(receipt.total)}"),
        ("Energy", words.energy(receipt.kwh) + (" (estimated)" if receipt.estimated else "")),
        ("Carbon", words.carbon(receipt.g_co2)),
    ]
    return found


def _read_by(job: Job) -> list[tuple[str, Folder]]:
    """All that the job read, by its name."""
    found = {
        "Base": job.base,
        "Other": job.other,
        "Third": job.third,
        "Dataset": job.dataset,
        "Mix": job.mix,
        "Code": job.script,
    }
    return [(name, each) for name, each in found.items() if each is not None]


def _cell(text: str) -> str:
    """One line, no markup of its own."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("|", "\\|").replace("<", "&lt;")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
