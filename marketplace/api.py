"""The public market as JSON."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.cache import patch_cache_control
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace.core.paces import Accuracy
from marketplace.throttles import PerAddress
from scheduler import archive, history, public
from scheduler.models import Round
from scheduler.record_models import Record


class TradedSerializer(serializers.Serializer[history.Traded]):
    """What a class was let at within a day and a week; micros per GPU-hour."""

    day_low = serializers.IntegerField(allow_null=True)
    day_high = serializers.IntegerField(allow_null=True)
    week_low = serializers.IntegerField()
    week_high = serializers.IntegerField()
    day_gpus = serializers.IntegerField()
    week_gpus = serializers.IntegerField()


class SupplySerializer(serializers.Serializer[public.ClassSupply]):
    """One GPU class. Prices are micros per GPU-hour, all in, as a buyer pays them."""

    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField()
    free = serializers.IntegerField()
    nodes = serializers.IntegerField()
    memory_bytes = serializers.IntegerField(allow_null=True)
    ask_low = serializers.IntegerField(
        allow_null=True, help_text="The asks' lower quartile, if they come from enough suppliers"
    )
    ask_high = serializers.IntegerField(allow_null=True, help_text="The upper one")
    last_price = serializers.IntegerField(allow_null=True)
    last_at = serializers.DateTimeField(allow_null=True)
    traded = TradedSerializer(allow_null=True)


class RoundSerializer(serializers.Serializer[object]):
    """One clearing. Welfare and bound are USD per hour."""

    id = serializers.UUIDField()
    at = serializers.DateTimeField()
    jobs = serializers.IntegerField()
    gpus = serializers.IntegerField()
    matched_jobs = serializers.IntegerField()
    matched_gpus = serializers.IntegerField()
    welfare = serializers.FloatField()
    bound = serializers.FloatField()
    gap = serializers.FloatField(help_text="(bound − welfare) / bound")
    turnover = serializers.FloatField(help_text="USD per hour of what was let")
    make_whole = serializers.FloatField(help_text="USD per hour, from the platform's fee")
    seconds = serializers.FloatField()
    book_sha256 = serializers.CharField()


class PriceSerializer(serializers.Serializer[object]):
    """What one slot size of one cell was let at; of pooled sites a mean."""

    gpu_class = serializers.CharField()
    cell = serializers.CharField(help_text="class/region/trust/tier")
    slot = serializers.IntegerField(help_text="GPUs let together")
    price_micros = serializers.IntegerField(help_text="Per GPU-hour, as the buyer pays it")
    gpus = serializers.IntegerField()


class CurvePointSerializer(serializers.Serializer[object]):
    """So many GPUs are offered at this price or less, or wanted at it or more."""

    price = serializers.IntegerField(help_text="Micros per GPU-hour, of ten fixed steps a decade")
    gpus = serializers.IntegerField()


class CurveSerializer(serializers.Serializer[object]):
    """A class's supply and demand. A point stands for at least five orgs; with fewer there is
    none."""

    gpu_class = serializers.CharField()
    supply = CurvePointSerializer(many=True)
    demand = CurvePointSerializer(many=True)


class CheckSerializer(serializers.Serializer[Record]):
    """What our own check of a released round said: the same command that anybody can run."""

    checked_at = serializers.DateTimeField()
    checker = serializers.IntegerField(help_text="Version of the rules")
    is_right = serializers.BooleanField(allow_null=True, help_text="Null: it was broken off")
    found = serializers.CharField()


class RoundFileSerializer(serializers.Serializer[object]):
    """A file of a round; `url` reads it for some minutes."""

    url = serializers.CharField()
    sha256 = serializers.CharField()
    bytes = serializers.IntegerField()


class RoundFilesSerializer(serializers.Serializer[object]):
    """By their names."""

    def get_fields(self) -> dict[str, serializers.Field]:
        return {name: RoundFileSerializer() for name in (archive.BOOK, archive.MATCHES)}


class RecordSerializer(serializers.Serializer[Record]):
    """What a round commits to, and, once it is released, all of it."""

    matches_sha256 = serializers.CharField()
    root = serializers.CharField(help_text="Over all rows; empty at first")  # type: ignore[assignment]
    leaves = serializers.IntegerField()
    decided = serializers.FloatField(help_text="Welfare with the matches that were dropped")
    dropped_jobs = serializers.IntegerField(help_text="Matched, but something had moved")
    curves = CurveSerializer(many=True)
    releases_at = serializers.SerializerMethodField()
    released_at = serializers.DateTimeField(allow_null=True)
    forgotten_at = serializers.DateTimeField(allow_null=True)
    salting_key = serializers.SerializerMethodField(help_text="Empty until the release")
    files = serializers.SerializerMethodField(help_text="Null unless they can be had")
    check = serializers.SerializerMethodField(help_text="Ours; null until it was made")

    def get_releases_at(self, record: Record) -> datetime:
        return archive.released_at(record)

    def get_salting_key(self, record: Record) -> str:
        return archive.salting_key_of(record) if record.released_at else ""

    @extend_schema_field(RoundFilesSerializer(allow_null=True))
    def get_files(self, record: Record) -> dict[str, Any] | None:
        return archive.files(record)

    @extend_schema_field(CheckSerializer(allow_null=True))
    def get_check(self, record: Record) -> dict[str, Any] | None:
        return dict(CheckSerializer(record).data) if record.checked_at else None


class RoundDetailSerializer(RoundSerializer):
    """One clearing with all that is public of it. Once it is released this is the ROUND.json that
    `python -m scheduler.matching verify` reads beside the two files."""

    seed = serializers.IntegerField(help_text="Breaks ties")
    prices = serializers.SerializerMethodField()
    record = serializers.SerializerMethodField(help_text="Null for rounds of before there were any")

    @extend_schema_field(PriceSerializer(many=True))
    def get_prices(self, round: Round) -> list[dict[str, Any]]:
        return list(PriceSerializer(public.prices_of(round), many=True).data)

    @extend_schema_field(RecordSerializer(allow_null=True))
    def get_record(self, round: Round) -> dict[str, Any] | None:
        record = public.record_of(round)
        return dict(RecordSerializer(record).data) if record else None


class ProofSerializer(serializers.Serializer[object]):
    """That one row stood in a round: SHA-256 of 0x00, salt and row is a leaf; with the hashes of
    `path` beside it on its way up it leads to the root, as in RFC 6962."""

    round = serializers.UUIDField()
    at = serializers.DateTimeField()
    root = serializers.CharField()  # type: ignore[assignment]
    leaves = serializers.IntegerField()
    index = serializers.IntegerField()
    salt = serializers.CharField(help_text="16 bytes in hex")
    row = serializers.CharField(help_text="JSON: the row's columns, and its matches")
    path = serializers.ListField(child=serializers.CharField())


class AccuracySerializer(serializers.Serializer[Accuracy]):
    """How quotes of the last three months compare with what jobs came to; errors are medians of
    |actual / quoted − 1|."""

    jobs = serializers.IntegerField()
    time_error = serializers.FloatField()
    cost_error = serializers.FloatField()
    within = serializers.FloatField(help_text="Share whose time lay inside the quoted range")


class MarketSerializer(serializers.Serializer[public.MarketView]):
    """The market as it stands."""

    at = serializers.DateTimeField()
    supply = SupplySerializer(many=True)
    waiting_jobs = serializers.IntegerField()
    running_jobs = serializers.IntegerField()
    rounds = RoundSerializer(many=True)
    accuracy = AccuracySerializer(allow_null=True)


class MarketView(APIView):
    """Open supply, last prices and the last rounds. No key is needed."""

    public = True

    @extend_schema(responses=MarketSerializer, auth=[])
    def get(self, request: Request) -> Response:
        return Response(MarketSerializer(public.look(now=timezone.now())).data)


class Latest(CursorPagination):
    """The newest first."""

    ordering = "-at"
    page_size = 50


class RoundsView(APIView):
    """Rounds that matched something. No key is needed."""

    public = True
    throttle_classes = (PerAddress,)
    throttle_scope = "figures"

    @extend_schema(responses=RoundSerializer(many=True), auth=[])
    def get(self, request: Request) -> Response:
        pages = Latest()
        found = pages.paginate_queryset(public.rounds_matched(), request, view=self)
        return pages.get_paginated_response(RoundSerializer(found, many=True).data)


class RoundView(APIView):
    """One round: its figures, prices and curves, what it commits to, and, once it is released,
    where its book and matches are. No key is needed."""

    public = True
    throttle_classes = (PerAddress,)
    throttle_scope = "figures"

    @extend_schema(responses=RoundDetailSerializer, auth=[])
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(RoundDetailSerializer(get_object_or_404(public.every_round(), pk=pk)).data)


class PricesAskedSerializer(serializers.Serializer[object]):
    """Of which class, and how far back."""

    gpu_class = serializers.CharField(max_length=50)
    range = serializers.ChoiceField(choices=list(history.RANGES), default="day")


class PointSerializer(serializers.Serializer[history.Point]):
    """Some minutes in which GPUs were let: the mean, lowest and highest price, micros per GPU-hour,
    and how many."""

    at = serializers.DateTimeField(help_text="When they began")
    price = serializers.IntegerField()
    low = serializers.IntegerField()
    high = serializers.IntegerField()
    gpus = serializers.IntegerField()


class PricesSerializer(serializers.Serializer[object]):
    """A class's prices, oldest first; minutes in which nothing was let are left out."""

    gpu_class = serializers.CharField()
    at = serializers.DateTimeField()
    since = serializers.DateTimeField()
    step_s = serializers.IntegerField(help_text="Seconds from one point to the next")
    points = PointSerializer(many=True)


class PricesView(APIView):
    """The clearing prices of a class: of an hour by minutes, a day by quarters, a week by two
    hours. No key is needed; answers may be kept for five seconds."""

    public = True
    throttle_classes = (PerAddress,)
    throttle_scope = "figures"

    @extend_schema(parameters=[PricesAskedSerializer], responses=PricesSerializer, auth=[])
    def get(self, request: Request) -> Response:
        asked = PricesAskedSerializer(data=request.query_params)
        asked.is_valid(raise_exception=True)
        now, gpu_class = timezone.now(), asked.validated_data["gpu_class"]
        over = history.range_of(asked.validated_data["range"])
        answer = Response(
            PricesSerializer(
                {
                    "gpu_class": gpu_class,
                    "at": now,
                    "since": now - over.length,
                    "step_s": over.step.total_seconds(),
                    "points": history.points(gpu_class, over, now=now),
                }
            ).data
        )
        patch_cache_control(answer, public=True, max_age=5)
        return answer
