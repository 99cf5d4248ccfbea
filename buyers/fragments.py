"""The pieces of a job's page, each rendered from one object, each with an id of its own."""

from datetime import datetime
from typing import Final

from django.template.loader import render_to_string

from buyers import jobview
from buyers.models import Job
from scheduler import receipts

_OF_VIEW: Final = ("state", "waiting", "cost", "where", "checkpoints", "artifact", "story")


def of_job(job: Job, *, now: datetime) -> dict[str, str]:
    """Name → HTML of every live piece."""
    view = jobview.look(job, now=now)
    receipt = receipts.receipt(job)
    pieces = {name: _render(name, "view", view) for name in _OF_VIEW}
    pieces["receipt"] = _render("receipt", "receipt", receipt)
    pieces["log"] = _render("log", "log", jobview.log_tail(job, view.lease))
    return pieces


def _render(name: str, called: str, what: object) -> str:
    return render_to_string(f"buyers/_job_{name}.html", {called: what})
