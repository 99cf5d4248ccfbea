"""Leases whose ranks lost sight of each other."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0004_checkpoints_judged")]

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
                ],
                max_length=20,
            ),
        ),
    ]
