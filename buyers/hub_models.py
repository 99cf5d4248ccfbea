"""What buyers bring from a hub: fetches of bases, and their word on the licences."""

from typing import Self

from django.db import models
from django.db.models import Q

from marketplace.core.states import FETCH
from marketplace.models import Org, Stateful


class FetchQuerySet(models.QuerySet["Fetch"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)

    def under_way(self) -> Self:
        return self.filter(state__in=("asked", "fetching"))


class Fetch(Stateful):
    """An org's wish for a base from a hub, and how far it has come.

    `files` is a list of {path, bytes, sha256, git_sha1, done}: what the hub says of each file,
    completed by what was found.
    """

    MACHINE = FETCH

    org = models.ForeignKey(Org, models.PROTECT, related_name="fetches")
    hub = models.CharField(max_length=40)
    repo = models.CharField(max_length=200)
    revision = models.CharField(max_length=200, help_text="A branch, a tag or a commit, as asked")
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()
    token = models.BinaryField(null=True, help_text="Sealed; forgotten when the fetch ends")
    right = models.CharField(
        max_length=300, blank=True, help_text="Why it may be used, where no licence is named"
    )
    commit = models.CharField(max_length=64, blank=True)
    closed = models.BooleanField(default=False, help_text="Private or gated on the hub")
    licence = models.CharField(max_length=60, blank=True)
    shape = models.JSONField(default=dict)
    files = models.JSONField(default=list)
    bytes_total = models.BigIntegerField(default=0)
    bytes_done = models.BigIntegerField(default=0)
    failures = models.PositiveSmallIntegerField(default=0, help_text="In a row")
    detail = models.CharField(max_length=1000, blank=True, help_text="What it waits or failed for")
    artifact = models.ForeignKey(
        "buyers.Artifact", models.PROTECT, null=True, related_name="fetches"
    )

    objects = FetchQuerySet.as_manager()

    class Meta:
        # For the worker: what is under way, oldest first.
        indexes = [
            models.Index(
                fields=["created_at"], condition=Q(state__in=("asked", "fetching")),
                name="fetch_under_way",
            )
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


class LicenceAcceptance(models.Model):
    """An org's word that it may use what a repository holds: never changed, never removed.

    `statement` is what it said where the repository names no licence.
    """

    org = models.ForeignKey(Org, models.PROTECT, related_name="licence_acceptances")
    repository = models.CharField(max_length=250)
    licence = models.CharField(max_length=60, blank=True)
    statement = models.CharField(max_length=300, blank=True)
    by = models.CharField(max_length=150)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["org", "repository", "licence"], name="licence_accepted_once"
            )
        ]
