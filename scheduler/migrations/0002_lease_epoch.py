"""The sequence that fences leases: whoever holds the higher epoch is the later attempt."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0001_initial")]
    operations = [
        migrations.RunSQL(
            "CREATE SEQUENCE scheduler_lease_epoch AS bigint",
            "DROP SEQUENCE scheduler_lease_epoch",
        )
    ]
