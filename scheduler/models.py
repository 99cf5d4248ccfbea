"""What the engine writes: rounds and their prices, leases, assignments, usage.

What a round writes thousands of has no foreign keys in the database but what migrations 0020 and
0022 say in their place: a set's references are looked up at once, not row by row with a lock on each.
"""

from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from buyers.models import Job
from marketplace.core.ids import uuid7
from marketplace.core.money import premium_in
from marketplace.core.states import ASSIGNMENT, LEASE
from marketplace.models import Org, Stateful
from scheduler.hold_models import HeldGpu, Hold  # noqa: F401  (tables of this app)
from scheduler.record_models import Record  # noqa: F401  (a table of this app)
from suppliers.models import Gpu, Node, Offer


class Round(models.Model):
    """One clearing of the market, and the proof of its quality."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField()
    jobs = models.PositiveIntegerField(help_text="In the book")
    gpus = models.PositiveIntegerField(help_text="Free in the book")
    matched_jobs = models.PositiveIntegerField()
    matched_gpus = models.PositiveIntegerField()
    welfare = models.FloatField(help_text="USD per hour")
    bound = models.FloatField(help_text="No allocation can exceed this, USD per hour")
    make_whole = models.FloatField(help_text="USD per hour")
    seconds = models.FloatField()
    seed = models.BigIntegerField()
    book_sha256 = models.CharField(max_length=64)

    @property
    def gap(self) -> float:
        """The share of the bound by which any other matches could have been better, at most."""
        return max(0.0, 1 - self.welfare / self.bound) if self.bound > 0 else 0.0

    class Meta:
        # For the market page: the last rounds, those that matched something apart.
        indexes = [
            models.Index(fields=["-at"], name="round_at"),
            models.Index(fields=["-at"], condition=Q(matched_jobs__gt=0), name="round_matched_at"),
        ]


class ClearingPrice(models.Model):
    """What one slot size of one cell cost in one round, micros per GPU-hour."""

    round = models.ForeignKey(Round, models.PROTECT, related_name="prices", db_index=False)
    gpu_class = models.CharField(max_length=50)
    cell = models.CharField(max_length=120, help_text="class/site-or-pool/tier")
    slot = models.PositiveSmallIntegerField()
    price_micros = models.BigIntegerField()
    gpus = models.PositiveIntegerField(help_text="Let at this price in this round")
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["round", "cell", "slot"], name="one_price_per_cell")
        ]
        # For the last price of a cell, and a class's history.
        indexes = [
            models.Index(fields=["cell", "slot", "-at"], name="price_of_cell"),
            models.Index(fields=["gpu_class", "-at"], name="price_of_class"),
        ]


class Told(models.Model):
    """What a round has found of a waiting job (why, and what would place it) or of an idle offer."""

    subject = models.UUIDField(primary_key=True, help_text="The job's or the offer's id")
    says = models.JSONField(help_text="As scheduler.explaining writes it")
    looked_at = models.DateTimeField()

    class Meta:
        # To forget what nobody has looked at for a day.
        indexes = [models.Index(fields=["looked_at"], name="told_looked_at")]


class Moved(models.Model):
    """Nodes of which one statement moved something that the book minds, and in which transaction:
    what `scheduler.following` reads again. Written by triggers, for whoever writes the SQL."""

    nodes = ArrayField(models.UUIDField())
    xid = models.BigIntegerField(help_text="Number of the transaction, as pg_current_xact_id says")
    at = models.DateTimeField()

    class Meta:
        # For what came since, and to forget what is old.
        indexes = [
            models.Index(fields=["xid"], name="moved_since"),
            models.Index(fields=["at"], name="moved_at"),
        ]


class OpenSupply(models.Model):
    """What stands open of each class, as the rounds' worker saw it last: one row, so that the market
    page needs not read every offer."""

    at = models.DateTimeField()
    classes = models.JSONField(help_text="As scheduler.public writes it")


class PriceSpan(models.Model):
    """What a class was let at in five minutes of rounds, so that a week of them is read at once.

    Written with each round (`scheduler.history`); prices in micros per GPU-hour.
    """

    gpu_class = models.CharField(max_length=50)
    at = models.DateTimeField(help_text="Its beginning")
    gpus = models.BigIntegerField(help_text="Let in it")
    turnover_micros = models.BigIntegerField(help_text="Per hour, of those GPUs")
    low_micros = models.BigIntegerField()
    high_micros = models.BigIntegerField()
    last_micros = models.BigIntegerField(help_text="Mean of the last round in it")
    last_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["gpu_class", "at"], name="one_span_of_class")
        ]
        # For the figures of all classes.
        indexes = [models.Index(fields=["-at"], name="span_at")]


class LeaseQuerySet(models.QuerySet["Lease"]):
    def live(self) -> Self:
        return self.exclude(state="ended")


class Lease(Stateful):
    """One attempt of one job on one gang at one price.

    `epoch` fences it: it comes from a sequence of the database, and whoever writes for an older
    epoch of the job writes where nobody reads.
    """

    MACHINE = LEASE

    class EndReason(models.TextChoices):
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELLED = "cancelled"
        STOPPED = "stopped"
        UNPAID = "unpaid"
        DISPLACED = "displaced"
        GROWN = "grown"
        RECLAIMED = "reclaimed"
        NODE_LOST = "node_lost"
        EXPIRED = "expired"
        START_TIMEOUT = "start_timeout"
        BAD_CHECKPOINT = "bad_checkpoint"
        PARTED = "parted"
        KILLED = "killed"
        REFUSED = "refused"

    job = models.ForeignKey(
        Job, models.PROTECT, related_name="leases", db_constraint=False, db_index=False
    )
    round = models.ForeignKey(
        Round, models.PROTECT, null=True, related_name="leases", db_constraint=False, db_index=False
    )
    epoch = models.BigIntegerField(unique=True)
    gpu_class = models.CharField(max_length=50)
    level = models.SmallIntegerField()
    gpus_count = models.PositiveSmallIntegerField()
    price_micros = models.BigIntegerField(help_text="The buyer's, per GPU-hour, all in")
    save_s = models.PositiveIntegerField(help_text="Held back for a last checkpoint")
    created_at = models.DateTimeField()
    until = models.DateTimeField(help_text="It keeps its price to here at the latest")
    start_by = models.DateTimeField(help_text="Running by then, or it is a start_timeout")
    running_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # Set when it begins to end; the first reason stays.
    end_reason = models.CharField(max_length=20, choices=EndReason, blank=True)
    end_detail = models.CharField(max_length=300, blank=True)

    objects = LeaseQuerySet.as_manager()

    @property
    def premium_micros(self) -> int:
        """What of the price is its job's premium."""
        return premium_in(self.price_micros, self.job.premium_bps)

    class Meta:
        constraints = [
            # A job has one attempt at a time.
            models.UniqueConstraint(
                fields=["job"], condition=~Q(state="ended"), name="one_live_lease_per_job"
            ),
            # A round commits a match once, however often it is repeated; and a job's leases are
            # found here.
            models.UniqueConstraint(fields=["job", "round"], name="matched_once_per_round"),
            models.CheckConstraint(
                condition=~Q(state="ended") | (~Q(end_reason="") & Q(ended_at__isnull=False)),
                name="an_end_has_a_reason",
            ),
            models.CheckConstraint(
                condition=Q(price_micros__gt=0, gpus_count__gte=1), name="lease_has_a_price"
            ),
        ]
        indexes = [models.Index(fields=["state"], condition=~Q(state="ended"), name="lease_live")]


class LeasedGpu(models.Model):
    """A GPU in a lease, until its process is reported gone."""

    lease = models.ForeignKey(Lease, models.PROTECT, related_name="gpus", db_constraint=False)
    gpu = models.ForeignKey(
        Gpu, models.PROTECT, related_name="leases", db_constraint=False, db_index=False
    )
    released_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            # The one promise a market must keep: no GPU is let twice.
            models.UniqueConstraint(
                fields=["gpu"], name="gpu_let_once", condition=Q(released_at__isnull=True)
            )
        ]


class AssignmentQuerySet(models.QuerySet["Assignment"]):
    def on(self, node: Node) -> Self:
        return self.filter(node=node)

    def wanted(self) -> Self:
        """What a node must hear about: not yet settled."""
        return self.filter(settled_at=None)


class Assignment(Stateful):
    """A node's share of a lease, and its meter.

    `accrued_ms` is what the market's own clock saw running, `claimed_ms` what the node signed
    for; the lesser of the two is billed, up to `paid_through_s`.
    """

    MACHINE = ASSIGNMENT

    lease = models.ForeignKey(
        Lease, models.PROTECT, related_name="assignments", db_constraint=False, db_index=False
    )
    node = models.ForeignKey(Node, models.PROTECT, related_name="assignments", db_constraint=False)
    supplier = models.ForeignKey(
        Org, models.PROTECT, related_name="+", db_constraint=False, db_index=False
    )
    offer = models.ForeignKey(
        Offer, models.PROTECT, related_name="+", db_constraint=False, db_index=False
    )
    rank = models.PositiveSmallIntegerField()
    gpus_count = models.PositiveSmallIntegerField()
    price_micros = models.BigIntegerField(help_text="The buyer's, per GPU-hour, on this node")
    take_bps = models.PositiveSmallIntegerField(help_text="The platform's share of the price")
    spec = models.BinaryField(help_text="The AssignmentSpec as sent")
    spec_sha256 = models.CharField(max_length=64)
    paid_through_s = models.PositiveIntegerField(default=0, help_text="Running time in escrow")
    # Draining: wanted gone, and why; unbilled if the market or the owner wanted it.
    drain_why = models.CharField(max_length=30, blank=True)
    drain_grace_s = models.FloatField(default=0.0)
    drain_at = models.DateTimeField(null=True)
    # The meter
    boot_id = models.CharField(max_length=64, blank=True)
    beat_at = models.DateTimeField(null=True, help_text="Last heartbeat that metered it")
    reported_ms = models.BigIntegerField(default=0, help_text="Running time by the heartbeats")
    accrued_ms = models.BigIntegerField(default=0)
    claimed_ms = models.BigIntegerField(default=0)
    billed_s = models.PositiveIntegerField(default=0)
    waited_s = models.PositiveIntegerField(
        default=0, help_text="Running time before all ranks of its gang ran: nobody pays for it"
    )
    claim_n = models.BigIntegerField(default=-1, help_text="Number of the last signed claim")
    saved_ms = models.BigIntegerField(
        default=0, help_text="Running time when the last committed checkpoint was taken"
    )
    millijoules = models.BigIntegerField(default=0)
    power_measured = models.BooleanField(default=False)
    granted_bytes = models.BigIntegerField(default=0, help_text="Uploads allowed so far")
    # What it reports
    step = models.BigIntegerField(default=0)
    detail = models.CharField(max_length=300, blank=True)
    running_at = models.DateTimeField(null=True)
    gone_at = models.DateTimeField(null=True)
    exit_code = models.IntegerField(null=True)
    exit_signal = models.IntegerField(null=True)
    exit_why = models.CharField(max_length=60, blank=True)
    settled_at = models.DateTimeField(null=True, help_text="Nothing is left to upload or claim")
    at_fault = models.BooleanField(default=False, help_text="Its node broke or took back the lease")
    spared_at = models.DateTimeField(null=True, help_text="From here its gang goes on without it")

    objects = AssignmentQuerySet.as_manager()

    @property
    def paid_s(self) -> int:
        """Seconds of running that have been paid for."""
        return max(0, self.billed_s - self.waited_s)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["lease", "node"], name="one_assignment_per_node"),
            models.UniqueConstraint(fields=["lease", "rank"], name="one_assignment_per_rank"),
        ]
        # For a node's desired state.
        indexes = [
            models.Index(
                fields=["node"], condition=Q(settled_at__isnull=True), name="assignment_wanted"
            )
        ]


class UsageSlice(models.Model):
    """Seconds `since_s`..`until_s` of an assignment's running, billed. Slices never overlap."""

    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="slices")
    since_s = models.PositiveIntegerField()
    until_s = models.PositiveIntegerField()
    charge_micros = models.BigIntegerField(help_text="Paid by the buyer")
    fee_micros = models.BigIntegerField(help_text="Of it, kept by the platform")
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["assignment", "since_s"], name="billed_once"),
            models.CheckConstraint(
                condition=Q(until_s__gt=models.F("since_s"), fee_micros__gte=0)
                & Q(charge_micros__gte=models.F("fee_micros")),
                name="slice_is_sane",
            ),
        ]


class Credit(models.Model):
    """Money given back for what brought no progress, with the reason on the receipt."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="credits")
    micros = models.BigIntegerField()
    from_supplier_micros = models.BigIntegerField()
    reason = models.CharField(max_length=200)
    at = models.DateTimeField()


class Shell(models.Model):
    """A shell that somebody opened in a running job, and what was typed into it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="shells")
    by = models.CharField(max_length=150)
    opened_at = models.DateTimeField()
    taken_at = models.DateTimeField(null=True, help_text="The node's agent came for it")
    kept_at = models.DateTimeField(help_text="Its socket last kept what was typed")
    ended_at = models.DateTimeField(null=True)
    typed = models.TextField(blank=True)

    class Meta:
        # For a node's desired state: those that nobody has come for.
        indexes = [
            models.Index(
                fields=["assignment"],
                condition=Q(taken_at=None, ended_at=None),
                name="shell_waiting",
            )
        ]


class FinishedRun(models.Model):
    """What a job took that succeeded, beside what was quoted: the next quotes learn from it."""

    job = models.OneToOneField(Job, models.PROTECT, related_name="finished_run")
    supplier = models.ForeignKey(Org, models.PROTECT, related_name="+")
    recipe = models.CharField(max_length=30)
    gpu_class = models.CharField(max_length=50)
    gpus = models.PositiveSmallIntegerField()
    base_parameters = models.BigIntegerField(help_text="Weights of the base; 0 if not known")
    tokens_per_s = models.FloatField(null=True, help_text="Median, as the recipe reported it")
    share = models.FloatField(null=True, help_text="Of the benchmark's arithmetic, that it reached")
    overhead = models.FloatField(null=True, help_text="Beside arithmetic, over what was reckoned")
    seconds = models.FloatField(help_text="Billed running time, over all attempts")
    charged_micros = models.BigIntegerField()
    quoted_s = models.FloatField(null=True)
    quoted_low_s = models.FloatField(null=True)
    quoted_high_s = models.FloatField(null=True)
    quoted_micros = models.BigIntegerField(null=True)
    at = models.DateTimeField()

    class Meta:
        indexes = [
            # For each quote: what its kind of job has reached lately.
            models.Index(fields=["recipe", "base_parameters", "-at"], name="run_of_a_kind"),
            # For the market page: how well quotes foretold.
            models.Index(fields=["-at"], condition=Q(quoted_s__isnull=False), name="run_quoted_at"),
        ]
