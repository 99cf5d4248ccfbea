"""Where a node is reached within its site, for gangs of several nodes."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("suppliers", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="node",
            name="lan_address",
            field=models.CharField(
                blank=True,
                default="",
                help_text="For gangs within the site; empty: takes no part",
                max_length=15,
            ),
            preserve_default=False,
        ),
    ]
