"""Whether the market may displace a job, and what it pays if not: nothing, of jobs until now."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("buyers", "0012_image_layers"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="premium_bps",
            field=models.PositiveSmallIntegerField(
                default=0, help_text="On top of the market's price, to the supplier; as ordered"
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="service",
            field=models.CharField(
                choices=[
                    ("protected", "Never displaced by the market"),
                    ("interruptible", "Makes room for a job that gains more by it"),
                ],
                default="protected",
                max_length=13,
            ),
        ),
        migrations.AlterField(
            model_name="job",
            name="limits",
            field=models.JSONField(
                help_text="GPU class → most micros per GPU-hour, premium included"
            ),
        ),
    ]
