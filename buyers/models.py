"""What buyers bring and get: datasets, jobs, quotes, checkpoints, artifacts, curves.

Foreign keys point down, never sideways: a quote names offers by id, a checkpoint its lease by
epoch.
"""

from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from buyers.call_models import RepeatableCall  # noqa: F401  (a table of this app)
from buyers.hub_models import Fetch
from buyers.own_models import ContainerImage, PackageLock
from marketplace.core.hardware import Level, Tier, Trust
from marketplace.core.ids import uuid7
from marketplace.core.money import MAX_AMOUNT
from marketplace.core.specs import PROTECTED, SERVICES
from marketplace.core.states import ARTIFACT, DATASET, JOB
from marketplace.models import Org, Stateful


class Folder(models.Model):
    """A set of files in our storage under `prefix`: immutable once `committed_at` is set.

    `manifest` is a list of {path, bytes, sha256}, sorted by path; `sha256` is its hash
    (`agent.protocol.manifest_sha256`).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    manifest = models.JSONField()
    sha256 = models.CharField(max_length=64)
    bytes = models.BigIntegerField()
    prefix = models.CharField(max_length=200)
    created_at = models.DateTimeField()
    committed_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True


class DatasetQuerySet(models.QuerySet["Dataset"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)

    def committed(self) -> Self:
        """Whole, checked, and never to change again."""
        return self.exclude(committed_at=None)

    def checking(self) -> Self:
        """All sent, and waiting for a worker to look at it."""
        return self.filter(state="checking")


class Dataset(Folder, Stateful):
    """One version of a dataset. A changed dataset is a new version."""

    MACHINE = DATASET

    state = models.CharField(max_length=20, default=DATASET.initial, editable=False)
    state_since = models.DateTimeField(default=timezone.now, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, related_name="datasets")
    name = models.CharField(max_length=100)
    version = models.PositiveIntegerField()
    rows = models.PositiveBigIntegerField(default=0)
    created_by = models.CharField(max_length=150)
    detail = models.CharField(max_length=1000, blank=True, help_text="Why it was refused")
    kinds = models.JSONField(default=list, help_text="Kinds of row that all its rows are")
    parts = models.JSONField(default=dict, help_text="train, heldout, domains/…: how many rows")
    preview = models.JSONField(default=dict, help_text="The same: their first rows")

    objects = DatasetQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "name", "version"], name="dataset_version_once")
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class ArtifactQuerySet(models.QuerySet["Artifact"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)

    def usable_by(self, org: Org) -> Self:
        """The org's own, the public bases, and those that it had fetched from a hub."""
        fetched = Fetch.objects.filter(org=org).exclude(artifact=None).values("artifact")
        mine = Q(org=org) | Q(public=True) | Q(pk__in=fetched)
        return self.filter(mine).exclude(committed_at=None)

    def bases(self) -> Self:
        """Not made by a job here: published by the operator, or fetched from a hub."""
        return self.filter(job=None)


class Artifact(Folder, Stateful):
    """A model: the result of a job, a public base, or a base fetched from a hub.

    A base from an open repository belongs to nobody (`org` is null): who has asked for it may
    use it (`Fetch`). One that the hub shows only to some belongs to the org whose token read it.
    """

    MACHINE = ARTIFACT

    state = models.CharField(max_length=20, default=ARTIFACT.initial, editable=False)
    state_since = models.DateTimeField(default=timezone.now, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, null=True, related_name="artifacts")
    job = models.ForeignKey("Job", models.PROTECT, null=True, related_name="artifacts")
    epoch = models.BigIntegerField(null=True, help_text="The lease that made it")
    name = models.CharField(max_length=100)
    public = models.BooleanField(default=False)
    licence = models.CharField(max_length=60, blank=True)
    shape = models.JSONField(default=dict, help_text="BaseShape of a base model")
    lineage = models.JSONField(default=dict)
    evaluation = models.JSONField(default=dict, help_text="Its evaluation.json, if it has one")
    source = models.CharField(max_length=400, blank=True, help_text="hub:repository@commit")

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        constraints = [
            # Each commit of an open repository is kept once, each of a closed one once an org.
            models.UniqueConstraint(
                fields=["source", "org"], condition=~Q(source=""), nulls_distinct=False,
                name="fetched_once",
            ),
            # Promoting one retires the other.
            models.UniqueConstraint(
                fields=["org", "name"], condition=Q(state="current"), name="one_current_of_a_name"
            ),
            models.UniqueConstraint(fields=["job"], name="one_artifact_per_job"),
            models.UniqueConstraint(
                fields=["name"], condition=Q(public=True), name="public_name_once"
            ),
            models.CheckConstraint(
                condition=Q(public=True) | Q(org__isnull=False) | ~Q(source=""),
                name="artifact_has_an_owner",
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return self.name

    @property
    def is_adapter(self) -> bool:
        """Whether it is a difference to a whole model, and none by itself."""
        return any(entry["path"] == "adapter_config.json" for entry in self.manifest)

    @property
    def whole(self) -> "Artifact | None":
        """Itself, or the whole model that an adapter goes with; None if nobody knows that."""
        found: Artifact | None = self
        while found is not None and found.is_adapter:
            found = found.job.base if found.job else None
        return found

    @property
    def repository(self) -> str:
        """`hub:repository` of a fetched base; empty for others."""
        return self.source.rpartition("@")[0]

    @property
    def commit(self) -> str:
        """The commit of a fetched base; empty for others."""
        return self.source.rpartition("@")[2]


class JobQuerySet(models.QuerySet["Job"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)

    def queued(self) -> Self:
        return self.filter(state="queued")

    def live(self) -> Self:
        """Not at rest: it waits, or runs."""
        return self.filter(state__in=("queued", "placed", "running"))


class Job(Stateful):
    """What a buyer wants trained, within which limits. Its bid stands in `limits`."""

    MACHINE = JOB

    class Order(models.TextChoices):
        BID = "bid", "Left to the rounds"
        TAKE = "take", "A quoted offer"

    org = models.ForeignKey(Org, models.PROTECT, related_name="jobs", db_index=False)
    name = models.CharField(max_length=100)
    # Only who would delete a user asks for theirs, and a job that moves is written into each index.
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="+", db_index=False
    )
    created_at = models.DateTimeField()
    # What to run
    recipe = models.CharField(max_length=30)
    parameters = models.JSONField(help_text="As validated by the recipe's catalogue")
    base = models.ForeignKey(
        Artifact, models.PROTECT, null=True, db_index=False, related_name="jobs_on_it"
    )
    dataset = models.ForeignKey(
        Dataset, models.PROTECT, null=True, db_index=False, related_name="jobs"
    )
    script = models.ForeignKey(
        Dataset, models.PROTECT, null=True, db_index=False, related_name="jobs_running_it",
        help_text="The user's own code, a folder like a dataset",
    )  # fmt: skip
    mix = models.ForeignKey(
        Dataset, models.PROTECT, null=True, db_index=False, related_name="+",
        help_text="Blended into the training's rows",
    )  # fmt: skip
    other = models.ForeignKey(
        Artifact, models.PROTECT, null=True, db_index=False, related_name="+",
        help_text="A second model: the teacher, or what is added to the base",
    )  # fmt: skip
    third = models.ForeignKey(
        Artifact, models.PROTECT, null=True, db_index=False, related_name="+",
        help_text="A third model, merged with the second",
    )  # fmt: skip
    environment = models.CharField(max_length=64, blank=True, help_text="Lock, if it needs one")
    seed = models.PositiveIntegerField(default=0)
    egress = models.JSONField(default=list, help_text="Names that it may reach; empty is nobody")
    packages = models.ForeignKey(
        PackageLock, models.PROTECT, null=True, db_index=False, related_name="jobs",
        help_text="Its own environment; none: the node's",
    )  # fmt: skip
    image = models.ForeignKey(
        ContainerImage, models.PROTECT, null=True, db_index=False, related_name="jobs"
    )
    secrets = models.JSONField(default=list, help_text="Names of the secrets that it is given")
    # Where it may run
    order = models.CharField(max_length=4, choices=Order)
    gpus_min = models.PositiveSmallIntegerField(default=1)
    gpus_max = models.PositiveSmallIntegerField(default=1)
    memory_bytes = models.BigIntegerField(help_text="Needed on each GPU")
    memory_cpu_bytes = models.BigIntegerField(
        default=0, help_text="Needed on a processor instead; 0 is the same"
    )
    disk_bytes = models.BigIntegerField()
    level = models.SmallIntegerField(
        choices=[(level.value, level.name.lower()) for level in Level], default=Level.NODE
    )
    regions = models.JSONField(default=list, help_text="Names; empty is anywhere")
    trust = models.SmallIntegerField(default=Trust.COMMUNITY, help_text="Worst acceptable")
    tier = models.SmallIntegerField(default=Tier.UNPROVEN, help_text="Worst acceptable")
    kappa = models.FloatField(default=0.0, help_text="Share of time spent communicating")
    avoid_nodes = models.JSONField(default=list, help_text="Ids of nodes that failed it")
    # What it may cost
    limits = models.JSONField(help_text="GPU class → most micros per GPU-hour, premium included")
    budget_micros = models.BigIntegerField(help_text="Never a micro over, in all")
    service = models.CharField(max_length=13, choices=SERVICES, default=PROTECTED)
    premium_bps = models.PositiveSmallIntegerField(
        default=0, help_text="On top of the market's price, to the supplier; as ordered"
    )
    deadline_at = models.DateTimeField(null=True)
    estimated_seconds = models.FloatField(default=0.0)
    quoted = models.JSONField(
        default=dict,
        help_text="Of a taken quote: seconds_low, seconds, seconds_high, micros; empty for a bid",
    )
    # What it has come to
    queued_at = models.DateTimeField()
    spent_micros = models.BigIntegerField(default=0, help_text="Charged so far, over all leases")
    fruitless = models.PositiveSmallIntegerField(
        default=0, help_text="Supplier-side ends in a row without new progress"
    )
    step = models.BigIntegerField(default=0, help_text="Furthest step reported")
    total_steps = models.BigIntegerField(default=0)
    save_s = models.FloatField(null=True, help_text="Seconds a checkpoint takes, as measured")

    objects = JobQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(
                    budget_micros__gt=0, budget_micros__lte=MAX_AMOUNT, memory_bytes__gte=0,
                    gpus_min__gte=1, gpus_max__lte=1024,
                )
                & Q(gpus_max__gte=models.F("gpus_min"))
                & Q(spent_micros__gte=0, spent_micros__lte=models.F("budget_micros")),
                name="job_within_its_budget",
            )
        ]  # fmt: skip
        indexes = [
            # For each round: the jobs that wait.
            models.Index(fields=["queued_at"], condition=Q(state="queued"), name="job_waiting"),
            # For the buyer's list: newest first.
            models.Index(fields=["org", "-created_at"], name="job_list"),
            # For whoever would delete what jobs read. Most read little, and a job that moves is
            # written into each of its indexes anew.
            *(
                models.Index(fields=[of], condition=Q(**{f"{of}__isnull": False}), name=f"job_{of}")
                for of in "base dataset script mix other third packages image".split()
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def budget_left(self) -> int:
        """Micros that may still be spent."""
        return self.budget_micros - self.spent_micros


class CheckpointQuerySet(models.QuerySet["Checkpoint"]):
    def usable(self) -> Self:
        """Whole, still there, and not known or said to be bad."""
        return self.filter(
            committed_at__isnull=False, deleted_at=None, doubted_at=None, bad_at=None
        )


class Checkpoint(Folder):
    """A state that a job can go on from. Committed whole or not at all, fenced by epoch."""

    job = models.ForeignKey(Job, models.PROTECT, related_name="checkpoints")
    epoch = models.BigIntegerField()
    step = models.BigIntegerField()
    seconds = models.FloatField(default=0.0, help_text="What writing it cost the job")
    running_ms = models.BigIntegerField(null=True, help_text="Running time when it was written")
    place = models.CharField(max_length=400, blank=True, help_text="Where it lay, below /job")
    deleted_at = models.DateTimeField(null=True, help_text="Files removed by retention")
    # What came of going on from it
    proven_at = models.DateTimeField(null=True, help_text="A node restored it and ran")
    doubted_at = models.DateTimeField(null=True, help_text="A node could not; to be looked at")
    bad_at = models.DateTimeField(null=True, help_text="Its bytes are not what they should be")

    objects = CheckpointQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "epoch", "step"], name="checkpoint_once")
        ]
        # For resuming: the furthest one of a job.
        indexes = [
            models.Index(fields=["job", "-epoch", "-step"], name="checkpoint_furthest"),
            # For judging: the few that somebody could not read.
            models.Index(
                fields=["doubted_at"], condition=Q(doubted_at__isnull=False),
                name="checkpoint_doubted",
            ),
        ]  # fmt: skip


class RunLog(Folder):
    """The output of one attempt, kept when it ended."""

    job = models.ForeignKey(Job, models.PROTECT, related_name="run_logs")
    epoch = models.BigIntegerField()
    rank = models.PositiveSmallIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "epoch", "rank"], name="run_log_once")
        ]


class MetricPoint(models.Model):
    """One point of a job's curves. A later attempt that repeats a step replaces nothing: the
    page shows the point of the highest epoch."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="metrics")
    epoch = models.BigIntegerField()
    step = models.BigIntegerField()
    values = models.JSONField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "epoch", "step"], name="metric_once")]


class QuoteQuerySet(models.QuerySet["Quote"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)


class Quote(models.Model):
    """The best places for a job, and then some that don't fit, with the reason, at prices that hold
    until `expires_at`: `options` is a list of `scheduler.quoting.Option`, as JSON.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, related_name="quotes")
    request = models.JSONField(help_text="The job as asked for")
    options = models.JSONField()
    more_fit = models.PositiveIntegerField(default=0)
    more_unfit = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    taken_at = models.DateTimeField(null=True)
    job = models.ForeignKey(Job, models.PROTECT, null=True, related_name="quotes")

    objects = QuoteQuerySet.as_manager()
