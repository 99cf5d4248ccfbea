"""When a shell's socket was last heard of: those whose process is gone are ended."""

from django.db import migrations, models
from django.db.models import F


def fill(apps, schema_editor):
    apps.get_model("scheduler", "Shell").objects.update(kept_at=F("opened_at"))


class Migration(migrations.Migration):
    dependencies = [("scheduler", "0007_refused")]

    operations = [
        migrations.AddField(
            model_name="shell",
            name="kept_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
        migrations.AlterField(
            model_name="shell",
            name="kept_at",
            field=models.DateTimeField(help_text="Its socket last kept what was typed"),
        ),
    ]
