"""Leases that a node would not begin, nobody being to blame."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0006_shells")]

    operations = [
        migrations.AlterField(
            model_name="lease",
            name="end_reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("completed", "Completed"),
                    ("failed", "Failed"),
                    ("cancelled", "Cancelled"),
                    ("stopped", "Stopped"),
                    ("unpaid", "Unpaid"),
                    ("preempted", "Preempted"),
                    ("reclaimed", "Reclaimed"),
                    ("node_lost", "Node Lost"),
                    ("expired", "Expired"),
                    ("start_timeout", "Start Timeout"),
                    ("bad_checkpoint", "Bad Checkpoint"),
                    ("parted", "Parted"),
                    ("killed", "Killed"),
                    ("refused", "Refused"),
                ],
                max_length=20,
            ),
        ),
    ]
