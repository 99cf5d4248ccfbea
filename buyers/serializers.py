"""The shapes of the REST API of buying. Shape only: what a value means, the services say.

Amounts go in as decimal text ("2.50"), and come out as integers of micros.
"""

from typing import Any

from rest_framework import serializers

from buyers import checking
from buyers.jobview import JobView
from buyers.models import Artifact, Dataset, Job, Quote
from buyers.told_serializers import HeldOut, JobToldOut
from marketplace.core.hardware import Level, Tier, Trust
from marketplace.core.specs import SERVICES
from scheduler.models import Assignment, Lease


class FileOut(serializers.Serializer[Any]):
    """A file of a folder; `url` reads it until it expires, ranges included."""

    path = serializers.CharField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    url = serializers.CharField()


class PutOut(serializers.Serializer[Any]):
    """Where to PUT a file; the headers are signed and must be sent as they are."""

    url = serializers.CharField()
    headers = serializers.DictField(child=serializers.CharField())


class FileIn(serializers.Serializer[Any]):
    """A file about to be sent: its relative path, size and SHA-256 in hex."""

    path = serializers.CharField(max_length=400)
    bytes = serializers.IntegerField(min_value=0)
    sha256 = serializers.CharField(min_length=64, max_length=64)


class DatasetIn(serializers.Serializer[Dataset]):
    """A new version: its name, and every file of it."""

    name = serializers.CharField(max_length=100)
    files = FileIn(many=True)


class DatasetOut(serializers.Serializer[Dataset]):
    """One version of a dataset (or of a project's code)."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    version = serializers.IntegerField()
    bytes = serializers.IntegerField()
    rows = serializers.IntegerField()
    sha256 = serializers.CharField()
    files = serializers.SerializerMethodField()
    state = serializers.CharField()
    detail = serializers.CharField(help_text="Why it was refused")
    kinds = serializers.ListField(child=serializers.CharField())
    created_at = serializers.DateTimeField()
    committed_at = serializers.DateTimeField(allow_null=True)

    def get_files(self, dataset: Dataset) -> int:
        return len(dataset.manifest)


class DatasetReport(DatasetOut):
    """A version with what was found in it: for train, heldout and each domain the rows and the
    first of them, shortened."""

    parts = serializers.SerializerMethodField()

    def get_parts(self, dataset: Dataset) -> dict[str, Any]:
        return checking.as_json(dataset)


class DatasetStarted(DatasetOut):
    """A version and where its files go; `puts` is empty if it is all there already."""

    puts = serializers.DictField(child=PutOut())


class ArtifactOut(serializers.Serializer[Artifact]):
    """A model: a job's result, or a public base."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    public = serializers.BooleanField()
    state = serializers.CharField(help_text="current: the org's model of its name")
    licence = serializers.CharField()
    # DRF's own `source` is something else; it reads declared fields by the metaclass.
    source = serializers.CharField()  # type: ignore[assignment]
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    job = serializers.UUIDField(source="job_id", allow_null=True)
    lineage = serializers.JSONField()
    created_at = serializers.DateTimeField()


class PromoteIn(serializers.Serializer[Any]):
    """Why, if it got worse somewhere."""

    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=250)


class MeasuredOut(serializers.Serializer[Any]):
    """One domain, before and after; `dropped`: worse by more than its margin."""

    name = serializers.CharField()
    measure = serializers.CharField()
    rows = serializers.IntegerField()
    before = serializers.FloatField(allow_null=True)
    after = serializers.FloatField(allow_null=True)
    margin = serializers.FloatField()
    dropped = serializers.BooleanField()


class ModelOut(serializers.Serializer[Any]):
    """What a model can do, and what it took (`card`, as Markdown)."""

    id = serializers.UUIDField(source="artifact.pk")
    name = serializers.CharField(source="artifact.name")
    state = serializers.CharField(source="artifact.state")
    measured = MeasuredOut(many=True)
    card = serializers.CharField()


class FolderFiles(serializers.Serializer[Any]):
    """A folder's manifest, its files readable by their URLs."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    files = FileOut(many=True)


class CheckpointOut(serializers.Serializer[Any]):
    """A state to go on from. `deleted_at`: its files are gone, newer ones are kept."""

    id = serializers.UUIDField()
    epoch = serializers.IntegerField()
    step = serializers.IntegerField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    seconds = serializers.FloatField()
    committed_at = serializers.DateTimeField()
    deleted_at = serializers.DateTimeField(allow_null=True)


class StoryOut(serializers.Serializer[Any]):
    """One line of a story."""

    at = serializers.DateTimeField()
    event = serializers.CharField()
    # DRF's own `source` is something else; it reads declared fields by the metaclass.
    source = serializers.CharField()  # type: ignore[assignment]
    target = serializers.CharField()
    reason = serializers.CharField()
    by = serializers.CharField()


class PointsOut(serializers.Serializer[Any]):
    """Points of a job's curves. Ask again with `after` = `next` for what came since."""

    points = serializers.ListField(child=serializers.JSONField())
    next = serializers.CharField()


class LogOut(serializers.Serializer[Any]):
    """The end of a job's output."""

    text = serializers.CharField()


class JobIn(serializers.Serializer[Job]):
    """A job as wanted (`marketplace.core.specs`); what is left out, the market fills in."""

    recipe = serializers.CharField(help_text="One of those that /recipes/ lists")
    budget = serializers.CharField(help_text='Never a cent over, in all: "2.50"')
    name = serializers.CharField(required=False)
    parameters = serializers.DictField(required=False)
    base = serializers.CharField(required=False, help_text="Id, or a public name")
    dataset = serializers.CharField(required=False, help_text="Id, name or name@version")
    script = serializers.CharField(required=False, help_text="The same, for your own code")
    mix = serializers.CharField(required=False, help_text="The same, for rows to blend in")
    other = serializers.CharField(required=False, help_text="A second model: id or public name")
    third = serializers.CharField(required=False, help_text="A third one")
    gpus = serializers.IntegerField(required=False)
    gpus_max = serializers.IntegerField(required=False)
    memory_gib = serializers.FloatField(required=False)
    disk_gib = serializers.FloatField(required=False)
    hours = serializers.FloatField(required=False, help_text="Needed by scripts")
    level = serializers.ChoiceField([level.name.lower() for level in Level], required=False)
    regions = serializers.ListField(child=serializers.CharField(), required=False)
    trust = serializers.ChoiceField([kind.name.lower() for kind in Trust], required=False)
    tier = serializers.ChoiceField([tier.name.lower() for tier in Tier], required=False)
    kappa = serializers.FloatField(required=False)
    service = serializers.ChoiceField(
        list(SERVICES), required=False, help_text="Left out: protected, at a premium"
    )
    limit = serializers.CharField(required=False, help_text="Most per GPU-hour, any class")
    limits = serializers.DictField(child=serializers.CharField(), required=False)
    deadline = serializers.DateTimeField(required=False)
    environment = serializers.CharField(required=False)
    seed = serializers.IntegerField(required=False)
    packages = serializers.CharField(
        required=False,
        help_text="Lock of its own packages; left out: as its project's files say; none: the node's",
    )
    image = serializers.CharField(
        required=False, help_text="For a script: the container image that it runs in, open to all"
    )
    secrets = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Names of yours, like HF_TOKEN"
    )
    egress = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Names to reach, like .wandb.ai"
    )


class TakeIn(serializers.Serializer[Quote]):
    """Which option of a quote, by its `index`."""

    option = serializers.IntegerField(min_value=0)


class ResumeIn(serializers.Serializer[Job]):
    """Perhaps with a new budget, in all."""

    budget = serializers.CharField(required=False, allow_blank=True, max_length=30, default="")


class QuoteOut(serializers.Serializer[Quote]):
    """The cheapest ways to run a job; what doesn't fit is last, with the reason in `why`."""

    id = serializers.UUIDField()
    request = serializers.JSONField()
    options = serializers.ListField(child=serializers.JSONField())
    more_fit = serializers.IntegerField(help_text="So many more fit, dearer than those shown")
    more_unfit = serializers.IntegerField(help_text="So many more don't")
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    taken_at = serializers.DateTimeField(allow_null=True)
    job = serializers.UUIDField(source="job_id", allow_null=True)


class ShareOut(serializers.Serializer[Assignment]):
    """One node's part in an attempt."""

    node = serializers.CharField(source="node.name")
    site = serializers.CharField(source="node.site.name")
    region = serializers.CharField(source="node.site.region")
    supplier = serializers.CharField(source="node.site.org.name")
    sandbox = serializers.CharField(source="node.sandbox")
    gpus = serializers.IntegerField(source="gpus_count")
    state = serializers.CharField()
    detail = serializers.CharField()


class LeaseOut(serializers.Serializer[Lease]):
    """One attempt at a job, at one price, micros per GPU-hour."""

    epoch = serializers.IntegerField()
    state = serializers.CharField()
    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField(source="gpus_count")
    price_micros = serializers.IntegerField()
    premium_micros = serializers.IntegerField(help_text="Of the price")
    created_at = serializers.DateTimeField()
    running_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    end_reason = serializers.CharField()
    end_detail = serializers.CharField()


class JobRow(serializers.Serializer[Job]):
    """A job as lists show it."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    state = serializers.CharField()
    state_since = serializers.DateTimeField()
    recipe = serializers.CharField()
    order = serializers.CharField()
    service = serializers.CharField(help_text="Protected, or interruptible: it may be displaced")
    created_at = serializers.DateTimeField()
    budget_micros = serializers.IntegerField()
    spent_micros = serializers.IntegerField()
    step = serializers.IntegerField()
    total_steps = serializers.IntegerField()


class JobOut(serializers.Serializer[JobView]):
    """A job with its live figures; `words` is its state in a sentence."""

    words = serializers.CharField()
    may = serializers.ListField(child=serializers.CharField())
    told = JobToldOut(allow_null=True, help_text="While it waits, once a round has looked at it")
    held = HeldOut(allow_null=True, help_text="While it waits, what others leave for it")
    lease = LeaseOut(allow_null=True)
    nodes = ShareOut(source="shares", many=True)
    artifact = serializers.UUIDField(source="artifact.pk", allow_null=True, default=None)
    parameters = serializers.JSONField(source="job.parameters")
    base = serializers.UUIDField(source="job.base_id", allow_null=True)
    dataset = serializers.UUIDField(source="job.dataset_id", allow_null=True)
    script = serializers.UUIDField(source="job.script_id", allow_null=True)
    mix = serializers.UUIDField(source="job.mix_id", allow_null=True)
    other = serializers.UUIDField(source="job.other_id", allow_null=True)
    third = serializers.UUIDField(source="job.third_id", allow_null=True)
    gpus_min = serializers.IntegerField(source="job.gpus_min")
    gpus_max = serializers.IntegerField(source="job.gpus_max")
    memory_bytes = serializers.IntegerField(source="job.memory_bytes")
    disk_bytes = serializers.IntegerField(source="job.disk_bytes")
    limits = serializers.JSONField(source="job.limits")
    premium_bps = serializers.IntegerField(
        source="job.premium_bps", help_text="On top of the market's price, basis points"
    )
    deadline_at = serializers.DateTimeField(source="job.deadline_at", allow_null=True)
    estimated_seconds = serializers.FloatField(source="job.estimated_seconds")
    seed = serializers.IntegerField(source="job.seed")
    egress = serializers.JSONField(source="job.egress")
    secrets = serializers.JSONField(source="job.secrets")
    packages = serializers.CharField(source="job.packages.sha256", default="")
    image = serializers.CharField(source="job.image.reference", default="")

    def to_representation(self, instance: JobView) -> dict[str, Any]:
        shown: dict[str, Any] = JobRow(instance.job).data
        return {**shown, **super().to_representation(instance)}
