"""The worst site that may see a job's secrets is asked for anew: it may have changed."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("buyers", "0009_processor_memory"),
    ]

    operations = [
        migrations.RemoveField(
            model_name="job",
            name="secrets_trust",
        ),
    ]
