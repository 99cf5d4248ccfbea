"""The wallet: what is in it, how it got there, and how more does."""

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from buyers import wallet
from buyers.api.base import BuyerView
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Transfer
from marketplace.models import Scope
from marketplace.payments import services as payments
from marketplace.payments.models import TopUp


class WalletOut(serializers.Serializer[wallet.Wallet]):
    """`held_micros` is in escrow for jobs, and comes back if they don't use it."""

    currency = serializers.CharField()
    balance_micros = serializers.IntegerField()
    held_micros = serializers.IntegerField()


class TransferOut(serializers.Serializer[Any]):
    """A line of the wallet's statement; `reference` is the job, assignment or top-up."""

    id = serializers.UUIDField()
    at = serializers.DateTimeField()
    kind = serializers.CharField()
    change_micros = serializers.IntegerField(source="change")
    reference = serializers.UUIDField()


class TopUpOut(serializers.Serializer[TopUp]):
    """A payment by card."""

    id = serializers.UUIDField()
    state = serializers.CharField()
    amount_micros = serializers.IntegerField(source="amount")
    created_at = serializers.DateTimeField()
    credited_at = serializers.DateTimeField(allow_null=True)


class TopUpIn(serializers.Serializer[TopUp]):
    """How much: "25.00"."""

    amount = serializers.CharField(max_length=30)


class TopUpStarted(serializers.Serializer[TopUp]):
    """The page on which a person pays."""

    url = serializers.CharField()


class LatestTransfers(CursorPagination):
    """A statement, its latest line first."""

    ordering = ("-at", "-id")
    page_size = 50


class WalletView(BuyerView):
    """What the org has, and what of it is held for jobs."""

    @extend_schema(responses=WalletOut)
    def get(self, request: Request) -> Response:
        return Response(WalletOut(wallet.look(self.org)).data)


class StatementView(BuyerView):
    """Every transfer into and out of the wallet."""

    @extend_schema(responses=TransferOut(many=True))
    def get(self, request: Request) -> Response:
        pages = LatestTransfers()
        lines: QuerySet[Transfer] = ledger.statement(ledger.wallet(self.org.pk))
        rows = pages.paginate_queryset(lines, request, view=self)
        return pages.get_paginated_response(TransferOut(rows, many=True).data)


class TopUpsView(BuyerView):
    """Payments by card into the wallet."""

    scope = Scope.MONEY

    @extend_schema(responses=TopUpOut(many=True))
    def get(self, request: Request) -> Response:
        return self.page(TopUp.objects.of(self.org), TopUpOut)

    @extend_schema(request=TopUpIn, responses={201: TopUpStarted})
    def post(self, request: Request) -> Response:
        page = settings.SITE_URL + reverse("wallet")
        url = payments.start_top_up(
            self.org,
            amount=payments.parse_top_up(self.body().get("amount")),
            success_url=f"{page}?paid=1",
            cancel_url=page,
            **self.by(),
        )
        return Response({"url": url}, status=201)
