"""Models: foreign keys point down, history outlives everybody, and the migrations say it all."""

from django.apps import apps
from django.db import models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

# What is worth nothing without its owner, and may go with it. All else is money or history.
MAY_FALL = {
    *("Member.org", "Member.user", "ApiKey.org", "RepeatableCall.org"),
    *("EnrolmentToken.site", "EnrolmentToken.node", "MetricPoint.job"),
}
# The layers of the house that hold tables, from the ground up. Equals may not point at each other.
HEIGHT = {"marketplace": 0, "ledger": 1, "payments": 2, "suppliers": 3, "buyers": 3, "scheduler": 4}


def test_foreign_keys_point_down():
    rising = [
        f"{model.__name__}.{field.name} -> {field.related_model.__name__}"
        for model, field in _relations()
        if (target := field.related_model._meta.app_label) in HEIGHT
        and target != model._meta.app_label
        and HEIGHT[target] >= HEIGHT[model._meta.app_label]
    ]
    assert not rising


def test_nothing_cascades_onto_money_or_story():
    falling = {
        f"{model.__name__}.{field.name}"
        for model, field in _relations()
        if field.remote_field.on_delete is models.CASCADE
    }
    assert falling <= MAY_FALL


def test_the_migrations_are_complete():
    loader = MigrationLoader(None)
    seen = MigrationAutodetector(loader.project_state(), ProjectState.from_apps(apps))
    missing = seen.changes(graph=loader.graph)
    assert not missing, f"run `manage.py makemigrations`: {missing}"


def _relations():
    for model in apps.get_models():
        if model._meta.app_label in HEIGHT:
            for field in model._meta.get_fields():
                if isinstance(field, models.ForeignKey):
                    yield model, field
