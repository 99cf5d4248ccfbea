"""Datasets, artifacts, and the recipes that turn the one into the other."""

from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agent.recipes import catalog
from buyers import control, datasets, downloads, modelview, promotion, recipes
from buyers.api.base import BuyerView, shaped
from buyers.models import Artifact, Dataset, Folder
from buyers.serializers import (
    ArtifactOut,
    DatasetIn,
    DatasetOut,
    DatasetReport,
    DatasetStarted,
    FolderFiles,
    ModelOut,
    PromoteIn,
)


def folder_files(folder: Folder, name: str) -> Response:
    """A folder's manifest with URLs."""
    body = {
        "id": folder.pk,
        "name": name,
        "bytes": folder.bytes,
        "sha256": folder.sha256,
        "files": downloads.files(folder),
    }
    return Response(FolderFiles(body).data)


class DatasetsView(BuyerView):
    """Your datasets, and your projects' code: each a folder, each change a new version."""

    @extend_schema(responses=DatasetOut(many=True))
    def get(self, request: Request) -> Response:
        found = Dataset.objects.of(self.org)
        if name := self.asked("name"):
            found = found.filter(name=name)
        return self.page(found, DatasetOut)

    @extend_schema(request=DatasetIn, responses={201: DatasetStarted})
    def post(self, request: Request) -> Response:
        """Declares a version. PUT each file where `puts` says, then commit.

        The same files again give the same version, with fresh URLs if it is not committed.
        """
        said = self.body()
        dataset, puts = datasets.start(
            self.org,
            name=str(said.get("name") or ""),
            files=datasets.manifest(said.get("files")),
            **self.by(),
        )
        where: dict[str, Any] = {
            path: {"url": put.url, "headers": put.headers} for path, put in puts.items()
        }
        return Response({**DatasetOut(dataset).data, "puts": where}, status=201)


class DatasetView(BuyerView):
    """One version, its files readable."""

    @extend_schema(responses=FolderFiles)
    def get(self, request: Request, pk: UUID) -> Response:
        dataset = get_object_or_404(Dataset.objects.of(self.org).committed(), pk=pk)
        return folder_files(dataset, str(dataset))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: UUID) -> Response:
        """Discards a version that was begun and not committed, with the files sent so far."""
        datasets.discard(get_object_or_404(Dataset.objects.of(self.org), pk=pk))
        return Response(status=204)


class ReportView(BuyerView):
    """One version as it is: its state, and what was found in it."""

    @extend_schema(responses=DatasetReport)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(DatasetReport(get_object_or_404(Dataset.objects.of(self.org), pk=pk)).data)


class CommitView(BuyerView):
    """All files are sent: have them checked, and the version made usable.

    A small version is `ready` or refused in the answer; others are `checking`: ask for the report.
    """

    @extend_schema(request=None, responses=DatasetOut)
    def post(self, request: Request, pk: UUID) -> Response:
        dataset = get_object_or_404(Dataset.objects.of(self.org), pk=pk)
        return Response(DatasetOut(control.commit(dataset, now=timezone.now())).data)


class ArtifactsView(BuyerView):
    """Your models, and the public bases."""

    @extend_schema(responses=ArtifactOut(many=True))
    def get(self, request: Request) -> Response:
        found = Artifact.objects.usable_by(self.org)
        if self.asked("public"):
            found = found.filter(public=True)
        return self.page(found, ArtifactOut)


class PromoteView(BuyerView):
    """Makes a model your organisation's current one of its name."""

    @extend_schema(request=PromoteIn, responses=ArtifactOut)
    def post(self, request: Request, pk: UUID) -> Response:
        artifact = get_object_or_404(Artifact.objects.usable_by(self.org), pk=pk)
        reason = shaped(PromoteIn(data=self.body()))["reason"]
        promoted = promotion.promote(artifact, reason=reason, **self.by())
        return Response(ArtifactOut(promoted).data)


class ModelView(BuyerView):
    """What a model can do, before and after, and what it took, as JSON and as Markdown."""

    @extend_schema(responses=ModelOut)
    def get(self, request: Request, pk: UUID) -> Response:
        usable = Artifact.objects.usable_by(self.org)
        view = modelview.look(get_object_or_404(usable, pk=pk), self.org)
        return Response(ModelOut(view).data)


class ArtifactView(BuyerView):
    """One model, its files readable."""

    @extend_schema(responses=FolderFiles)
    def get(self, request: Request, pk: UUID) -> Response:
        artifact = get_object_or_404(Artifact.objects.usable_by(self.org), pk=pk)
        return folder_files(artifact, artifact.name)


class RecipesView(BuyerView):
    """What can be run: inputs, and the JSON Schema of the parameters."""

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        return Response(
            {
                each.name: {
                    "about": each.about,
                    "inputs": [asdict(entry) for entry in each.inputs],
                    "parameters": catalog.schema(each.name),
                }
                for each in recipes.every()
            }
        )
