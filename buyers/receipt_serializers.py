"""The shapes of what a job cost."""

from rest_framework import serializers

from scheduler import receipts


class CreditOut(serializers.Serializer[receipts.CreditLine]):
    """Money given back, and why."""

    micros = serializers.IntegerField()
    reason = serializers.CharField()
    at = serializers.DateTimeField()


class ReceiptLineOut(serializers.Serializer[receipts.ReceiptLine]):
    """One node's share of one attempt, in micros and seconds of running that were billed."""

    lease = serializers.UUIDField()
    epoch = serializers.IntegerField()
    node = serializers.CharField()
    supplier = serializers.CharField()
    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField()
    seconds = serializers.IntegerField()
    gpu_seconds = serializers.IntegerField()
    price_micros = serializers.IntegerField()
    premium_micros = serializers.IntegerField(
        source="premium.price_micros", help_text="Of the price"
    )
    charge_micros = serializers.IntegerField(source="charge")
    premium_charged_micros = serializers.IntegerField(
        source="premium.charge", help_text="Of the charge"
    )
    fee_micros = serializers.IntegerField(source="fee")
    earnings_micros = serializers.IntegerField(source="earnings")
    take_bps = serializers.IntegerField()
    credits = CreditOut(many=True)
    end_reason = serializers.CharField()
    kwh = serializers.FloatField()
    g_co2 = serializers.FloatField()
    estimated = serializers.BooleanField()


class ReceiptOut(serializers.Serializer[receipts.Receipt]):
    """What a job cost; `total_micros` is what was paid in the end. `estimated`: of the energy."""

    job = serializers.UUIDField()
    lines = ReceiptLineOut(many=True)
    budget_micros = serializers.IntegerField(source="budget")
    gpu_seconds = serializers.IntegerField()
    charged_micros = serializers.IntegerField(source="charged")
    premium_bps = serializers.IntegerField()
    premium_charged_micros = serializers.IntegerField(source="premium", help_text="Of the charge")
    credited_micros = serializers.IntegerField(source="credited")
    total_micros = serializers.IntegerField(source="total")
    fees_micros = serializers.IntegerField(source="fees")
    earnings_micros = serializers.IntegerField(source="earnings")
    kwh = serializers.FloatField()
    g_co2 = serializers.FloatField()
    estimated = serializers.BooleanField()
