from django.db import migrations, models

# What stands in the rounds so far; from now on each round adds its own.
FILL = """
    INSERT INTO scheduler_pricespan
        (gpu_class, at, gpus, turnover_micros, low_micros, high_micros, last_micros, last_at)
    SELECT gpu_class, date_bin('5 minutes', at, 'epoch'), sum(gpus), sum(price_micros * gpus),
           min(price_micros), max(price_micros), sum(price_micros * gpus) / sum(gpus), max(at)
    FROM scheduler_clearingprice WHERE gpus > 0 GROUP BY 1, 2
"""


class Migration(migrations.Migration):
    dependencies = [
        ("scheduler", "0011_overheads"),
    ]

    operations = [
        migrations.CreateModel(
            name="PriceSpan",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("gpu_class", models.CharField(max_length=50)),
                ("at", models.DateTimeField(help_text="Its beginning")),
                ("gpus", models.BigIntegerField(help_text="Let in it")),
                ("turnover_micros", models.BigIntegerField(help_text="Per hour, of those GPUs")),
                ("low_micros", models.BigIntegerField()),
                ("high_micros", models.BigIntegerField()),
                (
                    "last_micros",
                    models.BigIntegerField(help_text="Mean of the last round in it"),
                ),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["-at"], name="span_at")],
                "constraints": [
                    models.UniqueConstraint(fields=["gpu_class", "at"], name="one_span_of_class")
                ],
            },
        ),
        migrations.RunSQL(FILL, migrations.RunSQL.noop),
    ]
