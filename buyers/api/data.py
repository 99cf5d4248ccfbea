"""Datasets, artifacts, and the recipes that turn the one into the other."""

from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from agent.recipes import catalog
from buyers import datasets, downloads
from buyers.api.base import BuyerView
from buyers.models import Artifact, Dataset, Folder
from buyers.serializers import ArtifactOut, DatasetIn, DatasetOut, DatasetStarted, FolderFiles


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


class CommitView(BuyerView):
    """All files are sent: have them checked, and the version made usable."""

    @extend_schema(request=None, responses=DatasetOut)
    def post(self, request: Request, pk: UUID) -> Response:
        dataset = get_object_or_404(Dataset.objects.of(self.org), pk=pk)
        return Response(DatasetOut(datasets.commit(dataset, now=timezone.now())).data)


class ArtifactsView(BuyerView):
    """Your models, and the public bases."""

    @extend_schema(responses=ArtifactOut(many=True))
    def get(self, request: Request) -> Response:
        found = Artifact.objects.usable_by(self.org)
        if self.asked("public"):
            found = found.filter(public=True)
        return self.page(found, ArtifactOut)


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
                name: {
                    "inputs": [
                        {"name": entry.name, "required": entry.required, "help": entry.help}
                        for entry in catalog.inputs(name)
                    ],
                    "parameters": catalog.schema(name),
                }
                for name in catalog.names()
            }
        )
