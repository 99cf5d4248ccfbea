"""Bases: those that everybody may start from, and those that an org has fetched from a hub."""

from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from buyers import control, fetching, licences
from buyers.api.base import BuyerView, shaped
from buyers.hub_models import Fetch
from buyers.models import Artifact
from buyers.serializers import ArtifactOut


class BaseOut(ArtifactOut):
    """A base. `accepted`: whether your organisation may use it as it is."""

    accepted = serializers.SerializerMethodField()

    def get_accepted(self, base: Artifact) -> bool:
        words: set[tuple[str, str]] = self.context["words"]
        return not base.source or (base.repository, base.licence) in words


class FetchOut(serializers.Serializer[Fetch]):
    """A base on its way. `detail` says what it waits for, or why it was refused."""

    id = serializers.UUIDField()
    hub = serializers.CharField()
    repo = serializers.CharField()
    revision = serializers.CharField()
    commit = serializers.CharField()
    state = serializers.CharField()
    detail = serializers.CharField()
    licence = serializers.CharField()
    bytes_done = serializers.IntegerField()
    bytes_total = serializers.IntegerField()
    artifact = serializers.UUIDField(source="artifact_id", allow_null=True)
    created_at = serializers.DateTimeField()


class FetchIn(serializers.Serializer[Fetch]):
    """Which base. `token` opens a private or gated one, and is forgotten when it is there."""

    repo = serializers.CharField(max_length=200, help_text="Like organisation/model")
    revision = serializers.CharField(required=False, default="", max_length=200)
    hub = serializers.CharField(required=False, default="", max_length=40)
    token = serializers.CharField(required=False, default="", max_length=500)
    right = serializers.CharField(
        required=False,
        default="",
        max_length=300,
        help_text="Why you may use it, if the repository names no licence",
    )


class LicenceIn(serializers.Serializer[Any]):
    """The licence that you have read: as the base names it."""

    licence = serializers.CharField(max_length=60, allow_blank=True)


class BasesView(BuyerView):
    """All models that you may start from and that no job made here."""

    @extend_schema(responses=BaseOut(many=True))
    def get(self, request: Request) -> Response:
        found = Artifact.objects.usable_by(self.org).bases().order_by("name", "-created_at")
        words = {"words": licences.words(self.org)}
        return Response([BaseOut(base, context=words).data for base in found[:500]])


class FetchesView(BuyerView):
    """Bases that you have asked for."""

    @extend_schema(responses=FetchOut(many=True))
    def get(self, request: Request) -> Response:
        return self.page(Fetch.objects.of(self.org), FetchOut)

    @extend_schema(request=FetchIn, responses={201: FetchOut})
    def post(self, request: Request) -> Response:
        """Has a base fetched from a hub. The same again, while it is under way, is that one."""
        wish = shaped(FetchIn(data=self.body()))
        return Response(FetchOut(control.add_base(self.org, **wish, **self.by())).data, status=201)


class FetchView(BuyerView):
    """One base on its way."""

    @extend_schema(responses=FetchOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(FetchOut(get_object_or_404(Fetch.objects.of(self.org), pk=pk)).data)


class CancelView(BuyerView):
    """Ends a fetch that is under way."""

    @extend_schema(request=None, responses=FetchOut)
    def post(self, request: Request, pk: UUID) -> Response:
        found = get_object_or_404(Fetch.objects.of(self.org), pk=pk)
        return Response(FetchOut(fetching.cancel(found, **self.by())).data)


class LicenceView(BuyerView):
    """Accepts the licence of a fetched base, for the whole organisation."""

    @extend_schema(request=LicenceIn, responses=BaseOut)
    def post(self, request: Request, pk: UUID) -> Response:
        base = get_object_or_404(Artifact.objects.usable_by(self.org), pk=pk)
        licence = shaped(LicenceIn(data=self.body()))["licence"]
        licences.accept(self.org, base, licence=licence, **self.by())
        return Response(BaseOut(base, context={"words": licences.words(self.org)}).data)
