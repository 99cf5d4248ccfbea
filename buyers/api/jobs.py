"""Quotes and jobs: asked for, ordered, watched, ended."""

from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from buyers import control, jobview
from buyers.api.base import REPEATABLE, BuyerView, shaped
from buyers.api.data import folder_files
from buyers.models import Job, Quote
from buyers.receipt_serializers import ReceiptOut
from buyers.serializers import (
    CheckpointOut,
    FolderFiles,
    JobIn,
    JobOut,
    JobRow,
    LogOut,
    PointsOut,
    QuoteOut,
    ResumeIn,
    StoryOut,
    TakeIn,
)
from buyers.told_serializers import AcceptIn
from marketplace.api import ProofSerializer
from marketplace.core import specs
from marketplace.core.errors import Missing
from marketplace.core.specs import JobRequest
from marketplace.throttles import EachCall
from scheduler import jobs, proving, quoting, receipts


class _JobView(BuyerView):
    def job(self, pk: UUID) -> Job:
        """The org's own job, or 404."""
        return get_object_or_404(Job.objects.of(self.org), pk=pk)

    def asked_for(self) -> JobRequest:
        """The job as wanted, resolved: that takes the network, and so no transaction (`once` opens
        one)."""
        return control.resolved(self.org, specs.parse(self.body()), now=timezone.now())

    def seen(self, job: Job) -> dict[str, Any]:
        """The job as it now is."""
        fresh = Job.objects.get(pk=job.pk)
        return dict(JobOut(jobview.look(fresh, now=timezone.now())).data)


class QuotesView(_JobView):
    """Where a job could run, how long it would take and what it would cost, before paying."""

    throttle_scope = "quotes"

    @extend_schema(request=JobIn, responses={201: QuoteOut}, parameters=[REPEATABLE])
    def post(self, request: Request) -> Response:
        asked = self.asked_for()
        return self.once(
            lambda: dict(QuoteOut(quoting.quote(self.org, asked, now=timezone.now())).data)
        )


class QuoteView(BuyerView):
    """A quote as it was given."""

    @extend_schema(responses=QuoteOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(QuoteOut(get_object_or_404(Quote.objects.of(self.org), pk=pk)).data)


class TakeView(_JobView):
    """Takes one option of a quote: the job starts at once, or not at all."""

    @extend_schema(request=TakeIn, responses={201: JobOut}, parameters=[REPEATABLE])
    def post(self, request: Request, pk: UUID) -> Response:
        quote = get_object_or_404(Quote.objects.of(self.org), pk=pk)
        option = shaped(TakeIn(data=self.body()))["option"]
        return self.once(lambda: self.seen(jobs.take(quote, option=option, **self.by())))


class JobsView(_JobView):
    """Your jobs."""

    @extend_schema(responses=JobRow(many=True))
    def get(self, request: Request) -> Response:
        found = Job.objects.of(self.org)
        if state := self.asked("state"):
            found = found.filter(state=state)
        return self.page(found, JobRow)

    @extend_schema(request=JobIn, responses={201: JobOut}, parameters=[REPEATABLE])
    def post(self, request: Request) -> Response:
        """A bid: the rounds find it the best place within its limits."""
        asked = self.asked_for()
        return self.once(lambda: self.seen(control.submit(self.org, asked, **self.by())))


class JobView(_JobView):
    """One job with its live figures."""

    @extend_schema(responses=JobOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(self.seen(self.job(pk)))


class CancelView(_JobView):
    """Ends a job for good."""

    @extend_schema(request=None, responses=JobOut)
    def post(self, request: Request, pk: UUID) -> Response:
        return Response(self.seen(jobs.cancel(self.job(pk), **self.by())))


class StopView(_JobView):
    """Checkpoints and stops a job, which can be resumed."""

    @extend_schema(request=None, responses=JobOut)
    def post(self, request: Request, pk: UUID) -> Response:
        return Response(self.seen(jobs.stop(self.job(pk), **self.by())))


class ResumeView(_JobView):
    """Queues a stopped job again, from its last checkpoint."""

    @extend_schema(request=ResumeIn, responses=JobOut)
    def post(self, request: Request, pk: UUID) -> Response:
        job = self.job(pk)
        budget = shaped(ResumeIn(data=self.body()))["budget"]
        return Response(self.seen(control.resume(job, budget=budget, **self.by())))


class AcceptView(_JobView):
    """Makes a waiting job easier to place: one change of those that it was told of."""

    @extend_schema(request=AcceptIn, responses=JobOut)
    def post(self, request: Request, pk: UUID) -> Response:
        job = self.job(pk)
        change = shaped(AcceptIn(data=self.body()))
        return Response(self.seen(control.accept(job, **change, **self.by())))


class MetricsView(_JobView):
    """The job's curves: loss, throughput, and what else it reports."""

    @extend_schema(
        responses=PointsOut,
        parameters=[OpenApiParameter("after", description="An earlier answer's `next`")],
    )
    def get(self, request: Request, pk: UUID) -> Response:
        found = jobview.points(self.job(pk), after=self.asked("after"))
        return Response({"points": found.rows, "next": found.next})


class LogView(_JobView):
    """The end of the output of the last attempt."""

    @extend_schema(responses=LogOut)
    def get(self, request: Request, pk: UUID) -> Response:
        job = self.job(pk)
        return Response({"text": jobview.log_tail(job, jobs.current_lease(job))})


class StoryView(_JobView):
    """What happened to the job, oldest first."""

    @extend_schema(responses=StoryOut(many=True))
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(StoryOut(self.job(pk).story(), many=True).data)


class ReceiptView(_JobView):
    """What ran, for how long, at which price, who got what of it, and its energy."""

    @extend_schema(responses=ReceiptOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(ReceiptOut(receipts.receipt(self.job(pk))).data)


class ProofView(_JobView):
    """The job's own row in a round with what came of it, and the proof that it stood there:
    `python -m scheduler.matching prove` checks it. Where no round is named: that which placed it
    last, else the newest."""

    throttle_classes = (EachCall,)
    throttle_scope = "proofs"

    @extend_schema(responses=ProofSerializer)
    def get(self, request: Request, pk: UUID, round: UUID | None = None) -> Response:
        return Response(proving.of_job(self.job(pk), round=round).as_json())


class CheckpointsView(_JobView):
    """States that the job can go on from, furthest first."""

    @extend_schema(responses=CheckpointOut(many=True))
    def get(self, request: Request, pk: UUID) -> Response:
        kept = self.job(pk).checkpoints.exclude(committed_at=None).order_by("-step", "-epoch")
        return Response(CheckpointOut(kept, many=True).data)


class CheckpointView(_JobView):
    """One checkpoint, its files readable."""

    @extend_schema(responses=FolderFiles)
    def get(self, request: Request, pk: UUID, checkpoint: UUID) -> Response:
        kept = self.job(pk).checkpoints.filter(deleted_at=None).exclude(committed_at=None)
        found = get_object_or_404(kept, pk=checkpoint)
        return folder_files(found, f"checkpoint at step {found.step}")


class ArtifactView(_JobView):
    """What the job made, its files readable."""

    @extend_schema(responses=FolderFiles)
    def get(self, request: Request, pk: UUID) -> Response:
        job = self.job(pk)
        artifact = job.artifacts.exclude(committed_at=None).first()
        if artifact is None:
            raise Missing(f"this job has no artifact: it is {job.state}")
        return folder_files(artifact, artifact.name)
