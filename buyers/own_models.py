"""What a project of one's own brings: its packages' lock or an image, and tokens for its jobs."""

from typing import Self

from django.db import models

from agent.protocol import image_room
from marketplace.core.hardware import Trust
from marketplace.core.ids import uuid7
from marketplace.models import Org


class PackageLockQuerySet(models.QuerySet["PackageLock"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)


class PackageLock(models.Model):
    """The packages that a project resolved to: exact wheels by version and hash. Never changed."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, related_name="package_locks")
    sha256 = models.CharField(max_length=64)
    text = models.TextField(help_text="A requirements file with hashes")
    python = models.CharField(max_length=10)
    torch = models.CharField(max_length=40, blank=True, help_text="Left to the node, if any")
    count = models.PositiveIntegerField()
    bytes = models.BigIntegerField(help_text="To fetch; 0 if the index doesn't tell")
    hosts = models.JSONField(help_text="Whom a build must reach")
    created_at = models.DateTimeField()

    objects = PackageLockQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "sha256"], name="lock_once")]

    def __str__(self) -> str:
        return f"{self.count} packages ({self.sha256[:8]})"


class ContainerImage(models.Model):
    """An image that jobs run in, by its digest. Never changed; everybody may fetch it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    reference = models.CharField(max_length=200, unique=True, help_text="registry/name@sha256:…")
    registry = models.CharField(max_length=100)
    bytes = models.BigIntegerField(help_text="To fetch")
    layers = models.JSONField(default=list, help_text="[{path, bytes, sha256}], the lowest first")
    env = models.JSONField(default=dict, help_text="What it sets for its programs")
    created_at = models.DateTimeField()

    @property
    def room(self) -> int:
        """Bytes of a node's disk that it may take."""
        return self.bytes + image_room(self.bytes)

    @property
    def sha256(self) -> str:
        """Its digest, without what says that it is one."""
        return self.reference.rpartition(":")[2]

    def __str__(self) -> str:
        name, _, digest = self.reference.partition("@sha256:")
        return f"{name} ({digest[:8]})"


class SecretQuerySet(models.QuerySet["Secret"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)


class Secret(models.Model):
    """A token that jobs find in the variable `name`. Its value is sealed (`marketplace.vault`)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, related_name="secrets")
    name = models.CharField(max_length=64)
    sealed = models.BinaryField()
    trust = models.SmallIntegerField(default=Trust.VERIFIED, help_text="Worst site that sees it")
    set_by = models.CharField(max_length=150)
    set_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, help_text="Last given to a job")

    objects = SecretQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "name"], name="secret_name_once")]

    def __str__(self) -> str:
        return self.name

    @property
    def trust_name(self) -> str:
        """In words."""
        return Trust(self.trust).name.lower()
