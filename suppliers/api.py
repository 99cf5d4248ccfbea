"""The REST API of supply, `/api/v1/…`: all that the pages do. Prices are micros per GPU-hour.

Views find through `.of(org)`, so a stranger's id is 404, and call one service. Serializers check
shape only.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace.api import ProofSerializer
from marketplace.core.hardware import Network
from marketplace.core.money import MICRO, format_amount
from marketplace.http import org_of
from marketplace.models import Scope
from marketplace.throttles import EachCall
from scheduler import proving
from suppliers import board, control, earnings, enrolment, offers, services
from suppliers.models import EnrolmentToken, Node, Offer, Site
from suppliers.serializers import (
    EarnedOut,
    FingerprintIn,
    NodeOut,
    OfferIn,
    OfferMade,
    OfferOut,
    RetireIn,
    SiteIn,
    SiteOut,
    TokenIn,
    TokenOut,
)
from suppliers.services import SiteFacts


class Oldest(CursorPagination):
    """Pages in the order in which things were made."""

    ordering = "id"
    page_size = 50


class SupplyView(APIView):
    """What all views here share: the scope, the org, and how lists are cut into pages."""

    scope = Scope.SUPPLY

    def by(self) -> dict[str, Any]:
        """Who does it, and when."""
        return {"by": self.request.user, "now": timezone.now()}

    def site(self, pk: UUID) -> Site:
        return get_object_or_404(Site.objects.of(org_of(self.request)), pk=pk)

    def node(self, pk: UUID) -> Node:
        mine = Node.objects.of(org_of(self.request)).select_related("site")
        return get_object_or_404(mine, pk=pk)

    def offer(self, pk: UUID) -> Offer:
        return get_object_or_404(Offer.objects.of(org_of(self.request)), pk=pk)

    def answer(self, node: Node) -> Response:
        """The node as it now is."""
        fresh = self.node(node.pk)
        return Response(NodeOut(board.line(fresh, now=timezone.now())).data)


class SitesView(SupplyView):
    """Your sites."""

    @extend_schema(responses=SiteOut(many=True))
    def get(self, request: Request) -> Response:
        pages = Oldest()
        found = pages.paginate_queryset(Site.objects.of(org_of(request)), request, view=self)
        return pages.get_paginated_response(SiteOut(found, many=True).data)

    @extend_schema(request=SiteIn, responses={201: SiteOut})
    def post(self, request: Request) -> Response:
        facts = _facts(_shape(SiteIn(data=request.data)))
        site = services.create_site(org_of(request), facts, now=timezone.now())
        return Response(SiteOut(site).data, status=201)


class SiteView(SupplyView):
    """One site."""

    @extend_schema(responses=SiteOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(SiteOut(self.site(pk)).data)

    @extend_schema(request=SiteIn, responses=SiteOut)
    def put(self, request: Request, pk: UUID) -> Response:
        site = self.site(pk)
        services.edit_site(site, _facts(_shape(SiteIn(data=request.data))))
        return Response(SiteOut(site).data)


class TokensView(SupplyView):
    """Ways in for new machines of a site."""

    @extend_schema(request=TokenIn, responses={201: TokenOut})
    def post(self, request: Request, pk: UUID) -> Response:
        site = self.site(pk)
        asked = _shape(TokenIn(data=request.data))
        seconds = asked.get("seconds")
        lifetime = timedelta(seconds=seconds) if seconds else None
        made = enrolment.make_token(site, nodes=asked["nodes"], lifetime=lifetime, **self.by())
        return _token(*made)


class NodesView(SupplyView):
    """Your machines."""

    @extend_schema(responses=NodeOut(many=True))
    def get(self, request: Request) -> Response:
        pages = Oldest()
        mine = Node.objects.of(org_of(request)).select_related("site")
        found = pages.paginate_queryset(mine, request, view=self)
        shown = board.lines(found or [], now=timezone.now())
        return pages.get_paginated_response(NodeOut(shown, many=True).data)


class NodeView(SupplyView):
    """One machine."""

    @extend_schema(responses=NodeOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return self.answer(self.node(pk))


class EarningsView(SupplyView):
    """What the node's last leases have paid, the newest first."""

    @extend_schema(responses=EarnedOut(many=True))
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(EarnedOut(earnings.of_node(self.node(pk)), many=True).data)


class NodeProofView(SupplyView):
    """The node's own row in a round with what of it was let, and the proof that it stood there:
    `python -m scheduler.matching prove` checks it. Where no round is named: that which let some of
    it last, else the newest."""

    throttle_classes = (EachCall,)
    throttle_scope = "proofs"

    @extend_schema(responses=ProofSerializer)
    def get(self, request: Request, pk: UUID, round: UUID | None = None) -> Response:
        return Response(proving.of_node(self.node(pk), round=round).as_json())


class ConfirmView(SupplyView):
    """You have read this fingerprint off the machine itself."""

    @extend_schema(request=FingerprintIn, responses=NodeOut)
    def post(self, request: Request, pk: UUID) -> Response:
        node = self.node(pk)
        said = _shape(FingerprintIn(data=request.data))["fingerprint"]
        return self.answer(control.confirm(node, said, **self.by()))


class DrainView(SupplyView):
    """Takes the machine back within the notice that its offer promised."""

    @extend_schema(request=None, responses=NodeOut)
    def post(self, request: Request, pk: UUID) -> Response:
        return self.answer(control.drain(self.node(pk), **self.by()))


class UndrainView(SupplyView):
    """Lets the machine again."""

    @extend_schema(request=None, responses=NodeOut)
    def post(self, request: Request, pk: UUID) -> Response:
        return self.answer(control.undrain(self.node(pk), **self.by()))


class RetireView(SupplyView):
    """Ends the machine's part in the market, and revokes its key."""

    @extend_schema(request=RetireIn, responses=NodeOut)
    def post(self, request: Request, pk: UUID) -> Response:
        node = self.node(pk)
        at_once = _shape(RetireIn(data=request.data))["at_once"]
        return self.answer(control.retire(node, at_once=at_once, **self.by()))


class RekeyView(SupplyView):
    """A token with which the machine gets a new key."""

    @extend_schema(request=None, responses={201: TokenOut})
    def post(self, request: Request, pk: UUID) -> Response:
        return _token(*enrolment.make_rekey_token(self.node(pk), **self.by()))


class NodeOffersView(SupplyView):
    """What one machine is and was let at."""

    @extend_schema(responses=OfferOut(many=True))
    def get(self, request: Request, pk: UUID) -> Response:
        return _offers_page(self, self.node(pk).offers.all())

    @extend_schema(request=OfferIn, responses={201: OfferMade})
    def post(self, request: Request, pk: UUID) -> Response:
        node = self.node(pk)
        terms = offers.Terms(**_shape(OfferIn(data=request.data)))
        made = control.offer(node, terms, **self.by())
        floor = offers.ask_floor(node)
        below = made.ask_micros < floor
        warning = f"that is less than its power costs, {format_amount(floor)}" if below else ""
        body = {**OfferOut(made).data, "floor_micros": floor, "warning": warning}
        return Response(body, status=201)


class OffersView(SupplyView):
    """Your offers, closed ones too."""

    @extend_schema(responses=OfferOut(many=True))
    def get(self, request: Request) -> Response:
        return _offers_page(self, Offer.objects.of(org_of(request)))


class OfferView(SupplyView):
    """One offer."""

    @extend_schema(responses=OfferOut)
    def get(self, request: Request, pk: UUID) -> Response:
        return Response(OfferOut(self.offer(pk)).data)


class OfferVerbView(SupplyView):
    """pause: nothing new starts on it. resume: open again. close: the end of it."""

    verb: Any = None

    @extend_schema(request=None, responses={200: OfferOut, 409: OpenApiResponse()})
    def post(self, request: Request, pk: UUID) -> Response:
        return Response(OfferOut(self.verb(self.offer(pk), **self.by())).data)


def _shape(serializer: serializers.Serializer[Any]) -> dict[str, Any]:
    """What was sent, in the right shape; DRF's own error otherwise."""
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def _facts(said: dict[str, Any]) -> SiteFacts:
    tariff = said.pop("tariff_per_kwh")
    network = Network[said.pop("network").upper()]
    return SiteFacts(**said, network=network, tariff_micros_per_kwh=int(tariff * MICRO))


def _token(token: EnrolmentToken, secret: str) -> Response:
    body = {
        "id": token.pk,
        "secret": secret,
        "nodes_left": token.nodes_left,
        "expires_at": token.expires_at,
    }
    response = Response(TokenOut(body).data, status=201)
    response["Cache-Control"] = "no-store"
    return response


def _offers_page(view: SupplyView, found: Any) -> Response:
    pages = Oldest()
    page: list[Offer] | None = pages.paginate_queryset(found, view.request, view=view)
    return pages.get_paginated_response(OfferOut(page, many=True).data)


urlpatterns = [
    path("sites/", SitesView.as_view(), name="sites"),
    path("sites/<uuid:pk>/", SiteView.as_view(), name="site"),
    path("sites/<uuid:pk>/tokens/", TokensView.as_view(), name="tokens"),
    path("nodes/", NodesView.as_view(), name="nodes"),
    path("nodes/<uuid:pk>/", NodeView.as_view(), name="node"),
    path("nodes/<uuid:pk>/earnings/", EarningsView.as_view(), name="node_earnings"),
    path("nodes/<uuid:pk>/proof/", NodeProofView.as_view(), name="node_proof"),
    path("nodes/<uuid:pk>/proof/<uuid:round>/", NodeProofView.as_view(), name="node_proof_in"),
    path("nodes/<uuid:pk>/confirm/", ConfirmView.as_view(), name="confirm_node"),
    path("nodes/<uuid:pk>/drain/", DrainView.as_view(), name="drain_node"),
    path("nodes/<uuid:pk>/undrain/", UndrainView.as_view(), name="undrain_node"),
    path("nodes/<uuid:pk>/retire/", RetireView.as_view(), name="retire_node"),
    path("nodes/<uuid:pk>/rekey/", RekeyView.as_view(), name="rekey_node"),
    path("nodes/<uuid:pk>/offers/", NodeOffersView.as_view(), name="node_offers"),
    path("offers/", OffersView.as_view(), name="offers"),
    path("offers/<uuid:pk>/", OfferView.as_view(), name="offer"),
    path(
        "offers/<uuid:pk>/pause/",
        OfferVerbView.as_view(verb=offers.pause),
        name="pause_offer",
    ),
    path(
        "offers/<uuid:pk>/resume/",
        OfferVerbView.as_view(verb=control.resume),
        name="resume_offer",
    ),
    path(
        "offers/<uuid:pk>/close/",
        OfferVerbView.as_view(verb=offers.close),
        name="close_offer",
    ),
]
