"""Where suppliers' pages, their REST API and their agents' calls live."""

from django.urls import path, re_path

from suppliers import agent_api, api, consumers, shells, views

page_urls = [
    path("", views.supply, name="supply"),
    path("sites/new/", views.new_site, name="new_site"),
    path("sites/<uuid:pk>/", views.edit_site, name="edit_site"),
    path("sites/<uuid:pk>/token/", views.new_token, name="new_token"),
    path("nodes/<uuid:pk>/", views.node, name="node"),
    path("nodes/<uuid:pk>/proof/", views.proof, name="node_proof"),
    path("nodes/<uuid:pk>/confirm/", views.confirm, name="confirm_node"),
    path("nodes/<uuid:pk>/drain/", views.drain, name="drain_node"),
    path("nodes/<uuid:pk>/undrain/", views.undrain, name="undrain_node"),
    path("nodes/<uuid:pk>/retire/", views.retire, name="retire_node"),
    path("nodes/<uuid:pk>/rekey/", views.rekey, name="rekey_node"),
    path("nodes/<uuid:pk>/offer/", views.new_offer, name="new_offer"),
    path("offers/<uuid:pk>/pause/", views.pause_offer, name="pause_offer"),
    path("offers/<uuid:pk>/resume/", views.resume_offer, name="resume_offer"),
    path("offers/<uuid:pk>/close/", views.close_offer, name="close_offer"),
]

api_urls = api.urlpatterns

agent_urls = [
    path("enrol", agent_api.enrol),
    path("proof", agent_api.proof),
    path("proof/<uuid:pk>/commit", agent_api.commit_proof),
    path("proof/<uuid:pk>/open", agent_api.open_proof),
    path("assignments/<uuid:pk>/spec", agent_api.spec),
    path("assignments/<uuid:pk>/inputs", agent_api.inputs),
    path("assignments/<uuid:pk>/layers", agent_api.layers),
    path("assignments/<uuid:pk>/secrets", agent_api.secrets),
    path("assignments/<uuid:pk>/uploads", agent_api.grant_uploads),
    path("assignments/<uuid:pk>/commits", agent_api.commit_upload),
]

# Channels routes ASGI applications as Django routes views; Django's stubs know views only.
websocket_urls = [
    path("agent/v1/socket", consumers.socket),  # type: ignore[arg-type]
    path("agent/v1/shells/<uuid:pk>", shells.socket),  # type: ignore[arg-type]
    re_path("", consumers.nothing_here),  # type: ignore[arg-type]
]
