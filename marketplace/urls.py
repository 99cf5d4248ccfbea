"""The table of contents."""

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

import buyers.urls
import suppliers.urls
from marketplace import api, views
from marketplace.payments import urls as payments

# One way to log in for everybody: with allauth's limit on tries, and what else it asks for.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]

urlpatterns: list[URLPattern | URLResolver] = [
    path("", views.home, name="home"),
    path("market/", views.market, name="market"),
    path("market/rounds/", views.rounds, name="rounds"),
    path("market/rounds/<uuid:pk>/", views.round_page, name="round"),
    path("market/rounds/<uuid:pk>/check/", views.check_round, name="check_round"),
    path("market/rounds/<uuid:pk>/<str:name>", views.round_file, name="round_file"),
    path("account/", include("allauth.urls")),
    path("account/keys/", views.api_keys, name="api_keys"),
    path("account/keys/<uuid:pk>/revoke/", views.revoke_key, name="revoke_key"),
    path("account/org/", views.switch_org, name="switch_org"),
    path("admin/", admin.site.urls),
    path("healthz", views.healthz, name="healthz"),
    path("api/v1/market/", api.MarketView.as_view(), name="api_market"),
    path("api/v1/market/prices/", api.PricesView.as_view(), name="api_market_prices"),
    path("api/v1/market/rounds/", api.RoundsView.as_view(), name="api_rounds"),
    path("api/v1/market/rounds/<uuid:pk>/", api.RoundView.as_view(), name="api_round"),
    path("api/v1/", include((suppliers.urls.api_urls + buyers.urls.api_urls, "api"))),
    path("api/schema/", SpectacularAPIView.as_view(permission_classes=[]), name="schema"),
    path("api/", SpectacularSwaggerView.as_view(url_name="schema", permission_classes=[])),
    path("agent/v1/", include(suppliers.urls.agent_urls)),
    path("stripe/", include(payments.urlpatterns)),
    path("supply/", include(suppliers.urls.page_urls)),
    path("buy/", include(buyers.urls.page_urls)),
    path("docs/mechanism/<slug:reader>/", views.mechanism, name="mechanism"),
    path("docs/", include(buyers.urls.doc_urls)),
]
