"""The public market as JSON."""

from django.utils import timezone
from django.utils.cache import patch_cache_control
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace.core.paces import Accuracy
from marketplace.throttles import PerAddress
from scheduler import history, public


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
