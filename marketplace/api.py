"""The public market as JSON."""

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace.core.paces import Accuracy
from scheduler import public


class SupplySerializer(serializers.Serializer[public.ClassSupply]):
    """One GPU class. Prices are micros per GPU-hour, all in, as a buyer pays them."""

    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField()
    free = serializers.IntegerField()
    nodes = serializers.IntegerField()
    memory_bytes = serializers.IntegerField()
    ask_low = serializers.IntegerField()
    ask_high = serializers.IntegerField()
    last_price = serializers.IntegerField(allow_null=True)
    last_at = serializers.DateTimeField(allow_null=True)


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
    make_whole = serializers.FloatField()
    seconds = serializers.FloatField()
    book_sha256 = serializers.CharField()


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
