"""Shells in running jobs: who asked, for how long, and what was typed. The bytes pass elsewhere.

A member of the job's org opens one, and the node is told so in what it should run; its agent
then comes for it (`suppliers.shells`), and both ends speak through the market until either hangs
up or the job ends. Every shell is a line of the job's story, and what was typed is kept.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q

from buyers.models import Job
from marketplace import telemetry
from marketplace.core.errors import Conflict, Missing
from marketplace.core.ids import uuid7
from marketplace.models import remark
from scheduler import metering
from scheduler.models import Assignment, Shell
from suppliers.models import Node

MOST_TYPED: Final = 2**20
"""Characters of one shell that are kept; the shell ends there."""
_AT_ONCE: Final = 4
_UNTAKEN: Final = timedelta(seconds=30)
_SILENT: Final = timedelta(minutes=3)
"""Long past the seconds in which a socket keeps what was typed."""


@transaction.atomic
def open_shell(job: Job, *, by: User, now: datetime) -> Shell:
    """Asks the first rank's node for a shell. Raises Conflict unless the job runs."""
    # Its lock: of two at once only one is the last that is let in.
    job = metering.locked_job(job.pk)
    share = (
        Assignment.objects.filter(lease__job=job, lease__end_reason="", rank=0, state="running")
        .exclude(lease__state="ended")
        .first()
    )
    if share is None or job.state != "running":
        raise Conflict(f"a shell opens in a running job only, and this one is {job.state}")
    if Shell.objects.filter(assignment=share, ended_at=None).count() >= _AT_ONCE:
        raise Conflict(f"a job has at most {_AT_ONCE} shells at once")
    shell = Shell.objects.create(
        id=uuid7(), assignment=share, by=by.get_username(), opened_at=now, kept_at=now
    )
    remark(job, "attach", now=now, by=by.get_username(), reason=f"opened the shell {shell.pk}")
    transaction.on_commit(lambda: telemetry.node_changed(share.node_id), robust=True)
    return shell


def take(node: Node, shell_id: UUID, *, now: datetime) -> Shell:
    """The node's agent comes for it. Raises Missing for another node's, or one that is over."""
    waiting = Shell.objects.filter(pk=shell_id, assignment__node=node, ended_at=None, taken_at=None)
    if not waiting.update(taken_at=now):
        raise Missing("there is no such shell to be opened here")
    return Shell.objects.get(pk=shell_id)


def keep(shell: Shell, *, typed: str, now: datetime) -> bool:
    """Keeps what has been typed so far; whether the shell is still open."""
    same = Shell.objects.filter(pk=shell.pk)
    same.update(typed=typed[:MOST_TYPED].replace("\0", "␀"), kept_at=now)
    return same.filter(ended_at=None).exists()


@transaction.atomic
def end(shell: Shell, *, now: datetime) -> None:
    """Ends both sides, and says in the job's story how long it was open. Once."""
    if not Shell.objects.filter(pk=shell.pk, ended_at=None).update(ended_at=now):
        return
    shell.refresh_from_db()
    job = Job.objects.get(leases__assignments=shell.assignment_id)
    seconds = (now - shell.opened_at).total_seconds()
    said = f"the shell {shell.pk} was open for {seconds:.0f} s; {len(shell.typed)} characters typed"
    remark(job, "detach", now=now, by=shell.by, reason=said)
    transaction.on_commit(lambda: telemetry.shell_over(shell.pk), robust=True)


def sweep(*, now: datetime) -> None:
    """Ends those that nobody else will: of ended leases, not come for, their socket's process
    gone."""
    over = Q(assignment__lease__state="ended")
    untaken = Q(taken_at=None, opened_at__lt=now - _UNTAKEN)
    silent = Q(kept_at__lt=now - _SILENT)
    for shell in Shell.objects.filter(over | untaken | silent, ended_at=None):
        end(shell, now=now)
