"""What the end of a lease means: for whom it counts, and where its job goes next (DESIGN §4)."""

import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from django.conf import settings

from agent.recipes.catalog import Exit
from buyers import secrets
from buyers.models import Job
from marketplace.core import words
from marketplace.core.errors import Conflict
from marketplace.core.money import format_amount
from marketplace.core.states import (
    FRUITLESS_ENDS,
    JOB,
    JOB_EVENT_AFTER,
    NODE_BROKE,
    NODE_FAULT_ENDS,
)
from marketplace.ledger import services as ledger
from marketplace.models import advance
from scheduler import credits, escrow, metering, paces, restores
from scheduler.models import Assignment, Lease

# The same for what is the job's own doing.
_JOB_BROKE: Final = {
    "memory": "it used more memory than it booked, and was killed",
    "disk": "it wrote more to disk than it booked, and was killed",
    "pids": "it started more processes than it may, and was killed",
    "hang": "it made no step and used no processor for too long, and was killed",
    "environment": "its environment could not be made",
    "secret": "its secrets could not be given to it",
    "output": "it left output that can't be accepted",
}
_DECLINED: Final = ("refused", "secret", "bad_input")
"""The agent's words for a job that it did not begin: its spec is strange, it gets no secrets, an
input is not what its manifest says (whoever made it, or storage, may have broken it)."""


def verdict(job: Job, lease: Lease, shares: Sequence[Assignment]) -> tuple[str, str]:
    """(end_reason, detail in words) of a lease whose `shares` are gone. Pure but for one look.

    An artifact is proof of being done, whatever else was on its way; then the reason given counts
    (a script that was asked to leave may well exit 0 half way); then what the worst rank says.
    """
    if job.artifacts.filter(epoch=lease.epoch).exists():
        return "completed", ""
    if lease.end_reason:
        return lease.end_reason, lease.end_detail
    if all(share.exit_code == 0 for share in shares):
        if job.recipe == "script":
            return "completed", ""
        return "failed", "it ended well but left no artifact"
    broken = [share for share in shares if share.exit_code != 0]
    if len(shares) > 1 and all(map(_left_for_others, broken)):
        # By their word alone: no node is blamed for it, and nothing comes back for it.
        return "parted", broken[0].detail or "its ranks lost sight of each other"
    worst = next((share for share in broken if share.exit_code != Exit.PEER_LOST), broken[0])
    why = worst.exit_why
    if why == "unpaid":
        return _out_of_money(job, lease, shares)
    if why == restores.UNREADABLE:
        return "bad_checkpoint", worst.detail
    if _is_declined(job, why):
        return "refused", worst.detail or "the node would not begin it"
    if why in NODE_BROKE:
        return "node_lost", worst.detail or NODE_BROKE[why]
    if why == "drain":
        # Nobody of ours asked: the node was cut off for too long, and let it save and leave.
        return "expired", worst.detail or "the node lost sight of the market, saved and left"
    if worst.exit_signal == signal.SIGKILL and why in ("exited", "killed"):
        # Its keeper did not do it: the machine's owner, its kernel out of memory, or itself.
        return "killed", "somebody on the node killed its process; it goes on from what it saved"
    return "failed", _failure(worst)


def _left_for_others(share: Assignment) -> bool:
    """Whether a rank says that another is gone, or was asked to leave for one that said so."""
    parted = share.drain_why == "parted" and share.exit_why == "drain"
    return parted or share.exit_code == Exit.PEER_LOST


def _is_declined(job: Job, why: str) -> bool:
    """Whether a node did not begin the job for what another node may not mind. It may be the job's
    own doing just as well, so no node is at fault."""
    if why == "secret":
        # Another site may be given them; what was forgotten nobody is given.
        return secrets.are_kept(job.org, job.secrets)
    return why in _DECLINED


def move_on(job: Job, lease: Lease, *, now: datetime) -> None:
    """Takes the job where its lease's end sends it, and its escrow home if it comes to rest."""
    event = JOB_EVENT_AFTER[lease.end_reason]
    reason = lease.end_detail or lease.end_reason.replace("_", " ")
    if lease.end_reason in {"displaced", "grown"}:
        reason = f"{reason}; {_lost(lease)}"
    if event == "requeue":
        event, reason = _requeue(job, lease, reason)
    if event == "succeed":
        job.fruitless = 0
        if job.state == "placed":
            # It started and finished between two heartbeats.
            job.advance("start", now=now)
        paces.note(job, lease, now=now)
    job.save(update_fields=["fruitless", "avoid_nodes"])
    queued_at = now if event == "requeue" else job.queued_at
    job.advance(event, now=now, reason=reason, queued_at=queued_at)
    if job.state in JOB.final or job.state == "stopped":
        metering.rest(job, now=now)


def stop_unfunded(needed: Mapping[Job, int], *, now: datetime) -> None:
    """Queued jobs that can't pay for a start, and the micros that it takes: they are stopped,
    resumable, with what they lack. Their escrows are the caller's to send home."""
    reasons = {job.pk: _lack(job, micros) for job, micros in needed.items()}
    if len(advance(list(needed), "stop", now=now, reason=reasons)) < len(needed):
        raise Conflict("one of these jobs has moved on; look again")


def _lack(job: Job, needed: int) -> str:
    if job.budget_left < needed:
        return (
            f"its budget has {format_amount(job.budget_left)} left, and a start with a save "
            f"takes {format_amount(needed)}: raise the budget and resume"
        )
    return f"the wallet doesn't cover the {format_amount(needed)} that a start takes"


def _requeue(job: Job, lease: Lease, reason: str) -> tuple[str, str]:
    progressed = job.checkpoints.filter(epoch=lease.epoch, committed_at__isnull=False).exists()
    if lease.end_reason in NODE_FAULT_ENDS:
        blamed = lease.assignments.filter(at_fault=True).values_list("node_id", flat=True)
        job.avoid_nodes = list(dict.fromkeys([*job.avoid_nodes, *map(str, blamed)]))
    elif lease.end_reason == "refused":
        declined = lease.assignments.filter(exit_why__in=_DECLINED)
        ids = declined.values_list("node_id", flat=True)
        job.avoid_nodes = list(dict.fromkeys([*job.avoid_nodes, *map(str, ids)]))
    if progressed:
        job.fruitless = 0
    elif lease.end_reason in FRUITLESS_ENDS:
        job.fruitless += 1
    if job.fruitless >= settings.POLICY.attempts_without_progress:
        return "fail", f"{job.fruitless} attempts in a row ended without progress; last: {reason}"
    return "requeue", reason


def _lost(lease: Lease) -> str:
    seconds = credits.unsaved_s(list(lease.assignments.all()))
    if not seconds:
        return "nothing is lost, for all of it was saved"
    return f"the {words.duration(seconds)} since its last checkpoint are lost, and not paid for"


def _out_of_money(job: Job, lease: Lease, shares: Sequence[Assignment]) -> tuple[str, str]:
    """The keeper ended it where its escrow ended: by the budget, the wallet, or our own absence."""
    needed = escrow.smallest(escrow.hourly(shares), len(shares), lease.save_s, settings.POLICY)
    if job.budget_left < needed:
        return "stopped", f"its budget of {format_amount(job.budget_micros)} is used up"
    held = ledger.balances([ledger.wallet(job.org_id), ledger.escrow(job.pk)])
    if sum(held.values()) < needed:
        return "unpaid", "the wallet ran dry; top it up and resume"
    return "expired", "the market was away when its escrow was to be filled; it goes on"


def _failure(share: Assignment) -> str:
    if share.exit_why in _JOB_BROKE:
        return share.detail or _JOB_BROKE[share.exit_why]
    if share.exit_signal:
        return f"it was ended by signal {share.exit_signal}"
    if share.exit_code == Exit.STOPPED:
        return f"it stopped by itself without being asked to (exit code {Exit.STOPPED:d})"
    return f"it ended with exit code {share.exit_code}; the log says more"
