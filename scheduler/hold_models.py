"""GPUs that are kept for one waiting job, for which others leave them."""

from django.db import models

from buyers.models import Job
from suppliers.models import Gpu


class Hold(models.Model):
    """What is held for one job: offered to it alone once all of it is free, and to nobody before."""

    job = models.OneToOneField(Job, models.PROTECT, related_name="hold")
    at = models.DateTimeField()
    until = models.DateTimeField(help_text="Given up by then, whatever has become of it")
    offered = models.PositiveSmallIntegerField(
        default=0, help_text="Rounds in which it was offered"
    )


class HeldGpu(models.Model):
    """A GPU of a hold. It may still be let, to a lease that is leaving."""

    hold = models.ForeignKey(Hold, models.PROTECT, related_name="gpus")
    gpu = models.OneToOneField(Gpu, models.PROTECT, related_name="held")
    least_micros = models.BigIntegerField(
        help_text="What who leaves it pays, before premium; 0 where nobody does. Nobody who is held "
        "it pays less"
    )
