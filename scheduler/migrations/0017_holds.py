"""GPUs that are held for a job, and a move of their nodes whenever that changes."""

import django.db.models.deletion
from django.db import migrations, models


TRIGGERS = """
CREATE TRIGGER scheduler_gpus_held AFTER INSERT ON scheduler_heldgpu
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_note_moved('gpus');
CREATE TRIGGER scheduler_gpus_held_no_more AFTER DELETE ON scheduler_heldgpu
    REFERENCING OLD TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler_note_moved('gpus');
"""
NO_TRIGGERS = """
DROP TRIGGER scheduler_gpus_held_no_more ON scheduler_heldgpu;
DROP TRIGGER scheduler_gpus_held ON scheduler_heldgpu;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("buyers", "0013_service"),
        ("scheduler", "0016_moved"),
        ("suppliers", "0005_registries"),
    ]

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
                    ("displaced", "Displaced"),
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
        migrations.CreateModel(
            name="Hold",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("at", models.DateTimeField()),
                (
                    "until",
                    models.DateTimeField(help_text="Given up by then, whatever has become of it"),
                ),
                (
                    "offered",
                    models.PositiveSmallIntegerField(
                        default=0, help_text="Rounds in which it was offered"
                    ),
                ),
                (
                    "job",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="hold",
                        to="buyers.job",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="HeldGpu",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "least_micros",
                    models.BigIntegerField(
                        help_text="What who leaves it pays, before premium; 0 where nobody does. Nobody who is held it pays less"
                    ),
                ),
                (
                    "gpu",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="held",
                        to="suppliers.gpu",
                    ),
                ),
                (
                    "hold",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="gpus",
                        to="scheduler.hold",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
