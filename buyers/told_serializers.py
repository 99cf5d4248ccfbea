"""The shapes of what a waiting job is told, and of the change that its buyer then makes."""

from typing import Any

from rest_framework import serializers

from scheduler.explaining import Helps, JobTold
from scheduler.holds import Held
from scheduler.matching.explain import Term


class AcceptIn(serializers.Serializer[Any]):
    """One change, as a job's `told` lists them: its term, and what to change it to."""

    term = serializers.ChoiceField(choices=[term.value for term in Term if term != Term.WINDOW])
    to = serializers.CharField(
        max_length=30, help_text="Micros of a limit, a number of GPUs, else a name"
    )
    gpu_class = serializers.CharField(
        max_length=60, required=False, default="", allow_blank=True, help_text="Of a limit"
    )


class ChangeOut(serializers.Serializer[Helps]):
    """One change that alone would place the job, by what is free and the last prices.

    `to`: micros for a limit on `gpu_class`, a number of GPUs, a moment for `wait`, which changes
    nothing, else a name. `hourly_micros`: what the place would cost, at most for `wait`; `cost_micros`: the same for as much work as all its GPUs do in an hour on
    the class with the job's highest limit.
    """

    term = serializers.CharField()
    to = serializers.CharField()
    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField()
    level = serializers.CharField()
    hourly_micros = serializers.IntegerField()
    cost_micros = serializers.IntegerField()
    words = serializers.CharField()


class JobToldOut(serializers.Serializer[JobTold]):
    """Why a job waits (`why`: unfit, apart, dear or rejected), and what would place it: each change
    alone, waiting first, then the cheapest."""

    why = serializers.CharField()
    words = serializers.CharField()
    changes = ChangeOut(many=True)


class HeldOut(serializers.Serializer[Held]):
    """GPUs that are held for a waiting job, until a moment at the latest; `free`: all of them are, so
    that the next round offers them to it."""

    gpus = serializers.IntegerField()
    until = serializers.DateTimeField()
    free = serializers.BooleanField()
