"""`manage.py publish_base FOLDER --name … --licence …`: a model that everybody may start from."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from buyers import bases
from marketplace import storage
from marketplace.core.errors import MarketError
from marketplace.core.shapes import BaseShape


class Command(BaseCommand):
    """Publishes a folder of safetensors, config and tokenizer. Again is a no-op."""

    help = "Publish a base model for all orgs"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--name", required=True)
        parser.add_argument("--licence", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        try:
            shape = BaseShape.from_config(json.loads((folder / "config.json").read_text()))
            storage.ensure_bucket()
            artifact = bases.publish(
                folder,
                name=options["name"],
                licence=options["licence"],
                shape=asdict(shape),
                now=timezone.now(),
            )
        except (OSError, ValueError, MarketError) as error:
            raise CommandError(f"{folder} can't be published: {error}") from None
        self.stdout.write(str(artifact.pk))
