"""Secrets: set, listed by name, forgotten; their values go in and never come out."""

from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from buyers import secrets
from buyers.api.base import BuyerView, shaped
from buyers.own_models import Secret
from marketplace.core.hardware import Trust

_LEVELS = [level.name.lower() for level in Trust]


class SecretIn(serializers.Serializer[Secret]):
    """`trust`: how well a site must be vouched for to be given it."""

    name = serializers.CharField(max_length=64)
    value = serializers.CharField(max_length=8192, trim_whitespace=False)
    trust = serializers.ChoiceField(_LEVELS, default="verified")


class SecretOut(serializers.Serializer[Secret]):
    """A secret without its value."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    trust = serializers.SerializerMethodField()
    set_by = serializers.CharField()
    set_at = serializers.DateTimeField()
    used_at = serializers.DateTimeField(allow_null=True)

    def get_trust(self, secret: Secret) -> str:
        return Trust(secret.trust).name.lower()


class SecretsView(BuyerView):
    """Your secrets."""

    @extend_schema(responses=SecretOut(many=True))
    def get(self, request: Request) -> Response:
        found = Secret.objects.of(self.org).order_by("name")
        return Response([SecretOut(secret).data for secret in found])

    @extend_schema(request=SecretIn, responses={201: SecretOut})
    def post(self, request: Request) -> Response:
        """A new one, or a new value of one."""
        asked: dict[str, Any] = shaped(SecretIn(data=self.body()))
        trust = secrets.parse_trust(asked.pop("trust"))
        kept = secrets.keep(self.org, trust=trust, **asked, **self.by())
        return Response(SecretOut(kept).data, status=201)


class SecretView(BuyerView):
    """One secret."""

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: UUID) -> Response:
        """Forgets it."""
        secrets.forget(get_object_or_404(Secret.objects.of(self.org), pk=pk))
        return Response(status=204)
