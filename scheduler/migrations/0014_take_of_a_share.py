"""The platform's share of a price is each assignment's: less where a price lies below the ask."""

from django.db import migrations, models
from django.db.models import OuterRef, Subquery


def copy(apps, schema_editor):
    """What each lease has kept until now holds for all of its assignments."""
    leases = apps.get_model("scheduler", "Lease").objects.filter(pk=OuterRef("lease"))
    assignments = apps.get_model("scheduler", "Assignment").objects
    assignments.update(take_bps=Subquery(leases.values("take_bps")))


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0013_told")]

    operations = [
        migrations.AddField(
            "assignment",
            "take_bps",
            models.PositiveSmallIntegerField(
                default=0, help_text="The platform's share of the price"
            ),
            preserve_default=False,
        ),
        migrations.RunPython(copy, migrations.RunPython.noop),
        migrations.RemoveField("lease", "take_bps"),
    ]
