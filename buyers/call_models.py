"""What was asked once, and may be asked again: POSTs that their callers named."""

from django.db import models

from marketplace.models import Org


class RepeatableCall(models.Model):
    """A POST that its caller named by an Idempotency-Key, and the answer it got.

    Written in the transaction of its effect, so either both are there or neither; kept for a
    day. `body_sha256` is over method, path and body: one key stands for one request.
    """

    org = models.ForeignKey(Org, models.CASCADE, related_name="+")
    key = models.CharField(max_length=100)
    body_sha256 = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField()
    answer = models.JSONField()
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "key"], name="call_once")]
        # For forgetting those that are older than a day.
        indexes = [models.Index(fields=["at"], name="call_at")]
