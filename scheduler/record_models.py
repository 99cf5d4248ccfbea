"""What is kept of a round for whoever wants to verify it."""

from typing import Self

from django.db import models
from django.db.models import F, Q


class RecordQuerySet(models.QuerySet["Record"]):
    def unproven(self) -> Self:
        """Whose root and curves are still to be made."""
        return self.filter(root="", raw__isnull=False).order_by("at")

    def unstored(self) -> Self:
        """Whose files are still to be put into storage."""
        return self.exclude(root="").filter(raw__isnull=False).order_by("at")

    def released(self) -> Self:
        """Whose files anybody may have."""
        return self.filter(released_at__isnull=False, forgotten_at=None)

    def to_check(self) -> Self:
        """Of which somebody wants to know whether they are right."""
        return self.released().filter(wanted_at__gt=F("checked_at")) | self.released().filter(
            wanted_at__isnull=False, checked_at=None
        )


class Record(models.Model):
    """A round's book and matches as they are kept, and what is told of them until their release.

    Written with the round, in its transaction, as `raw`; a worker then makes the root, the curves
    and the two files, and puts these into storage (`scheduler.archive`).
    """

    round = models.OneToOneField(
        "scheduler.Round", models.PROTECT, primary_key=True, related_name="record"
    )
    at = models.DateTimeField(help_text="The round's")
    secret = models.BinaryField(
        max_length=32, help_text="What its numbers and salts come from; never shown"
    )
    raw = models.BinaryField(null=True, help_text="Both files in one, until they are in storage")
    matches_sha256 = models.CharField(max_length=64)
    decided = models.FloatField(help_text="Welfare of all matches, the dropped too, USD per hour")
    dropped_jobs = models.PositiveIntegerField(
        help_text="Matched, and not placed since something had moved"
    )
    root = models.CharField(max_length=64, blank=True)
    leaves = models.PositiveIntegerField(default=0)
    curves = models.JSONField(default=list, help_text="By class, as scheduler.archive writes them")
    book_file = models.CharField(max_length=64, blank=True, help_text="SHA-256 of BOOK.npz")
    book_bytes = models.BigIntegerField(default=0)
    matches_file = models.CharField(max_length=64, blank=True, help_text="SHA-256 of MATCHES.npz")
    matches_bytes = models.BigIntegerField(default=0)
    released_at = models.DateTimeField(null=True)
    wanted_at = models.DateTimeField(null=True, help_text="Somebody asked for a check")
    checked_at = models.DateTimeField(null=True)
    checker = models.PositiveSmallIntegerField(null=True, help_text="Version of the rules")
    found = models.TextField(blank=True, help_text="What the check said")
    is_right = models.BooleanField(null=True)
    forgotten_at = models.DateTimeField(null=True, help_text="Its files were deleted")

    objects = RecordQuerySet.as_manager()

    class Meta:
        constraints = [
            # Nothing is released that nobody committed to, or that isn't in storage.
            models.CheckConstraint(
                condition=Q(released_at=None) | (~Q(root="") & Q(raw=None)),
                name="released_as_committed",
            )
        ]
        # For the sweeps: what is new, what is due, what is to be checked, what is old.
        indexes = [
            models.Index(fields=["at"], condition=Q(raw__isnull=False), name="record_raw"),
            models.Index(fields=["at"], condition=Q(released_at=None), name="record_unreleased"),
            models.Index(
                fields=["wanted_at"], condition=Q(wanted_at__isnull=False), name="record_wanted"
            ),
            models.Index(fields=["at"], condition=Q(forgotten_at=None), name="record_at"),
        ]

    @property
    def is_waiting(self) -> bool:
        """Whether a check was asked for, and has not been made since."""
        return self.wanted_at is not None and not (
            self.checked_at and self.checked_at >= self.wanted_at
        )
