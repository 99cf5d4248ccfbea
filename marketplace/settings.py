"""Every setting, from the environment, with defaults that run on a laptop.

A wrong value raises here, at start, by name; nothing is guessed later.
"""

import base64
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

from agent.protocol import REGISTRIES
from marketplace.core.policy import Policy


def _flag(name: str, *, default: bool) -> bool:
    text = os.environ.get(name, str(default)).lower()
    if text not in {"true", "false", "1", "0"}:
        raise ImproperlyConfigured(f"{name} must be true or false, not {text!r}")
    return text in {"true", "1"}


def _per_minute(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ImproperlyConfigured(f"{name} must be a whole number above 0, not {text!r}")
    return int(text)


def _url(name: str, default: str, *schemes: str) -> str:
    url = os.environ.get(name, default).rstrip("/")
    if url and urlsplit(url).scheme not in schemes:
        raise ImproperlyConfigured(f"{name} must be a {' or '.join(schemes)} URL, not {url!r}")
    return url


def _hubs(text: str) -> dict[str, str]:
    """Name → address, in the order given; the first is the one that is meant if none is named."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, url = part.strip().partition("=")
        if not name.isidentifier() or urlsplit(url).scheme not in ("http", "https"):
            raise ImproperlyConfigured(f"HUBS is like name=https://address,…, not {part!r}")
        found[name] = url.rstrip("/")
    return found


def _registries(text: str) -> dict[str, str]:
    """Registry, as images name it → address."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, url = part.strip().partition("=")
        url = url or f"https://{'registry-1.docker.io' if name == 'docker.io' else name}"
        if not name or urlsplit(url).scheme not in ("http", "https"):
            raise ImproperlyConfigured(
                f"IMAGE_REGISTRIES is like ghcr.io,host=https://address,…, not {part!r}"
            )
        found[name] = url.rstrip("/")
    return found


def _secret(name: str) -> str:
    """A secret that production must bring, and development may leave out."""
    value = os.environ.get(name, "")
    if not value and not DEBUG:
        raise ImproperlyConfigured(f"{name} is not set; it has no default outside DEBUG")
    return value or f"insecure-development-{name.lower()}"


def _database(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or 5432),
        "CONN_HEALTH_CHECKS": True,
        # A pool a process: a page is many short requests, and PostgreSQL's connects are dear.
        "OPTIONS": {"pool": {"min_size": 0, "max_size": 20, "timeout": 10}},
    }


BASE_DIR = Path(__file__).resolve().parent.parent
DEBUG = _flag("DEBUG", default=False)
SECRET_KEY = _secret("SECRET_KEY")
SITE_URL = _url("SITE_URL", "http://127.0.0.1:8000", "http", "https")
AGENTS_URL = _url("AGENTS_URL", "http://127.0.0.1:8001", "http", "https")
ALLOWED_HOSTS = [
    host
    for host in os.environ.get(
        "ALLOWED_HOSTS", f"{urlsplit(SITE_URL).hostname},{urlsplit(AGENTS_URL).hostname}"
    ).split(",")
    if host
]
CSRF_TRUSTED_ORIGINS = [SITE_URL]

POLICY = Policy().overridden(
    {
        name.removeprefix("POLICY_").lower(): value
        for name, value in os.environ.items()
        if name.startswith("POLICY_")
    }
)
# The market's Ed25519 seed: it signs receipts that suppliers may hold us to.
MARKET_SIGNING_KEY = base64.b64decode(os.environ.get("MARKET_SIGNING_KEY", ""), validate=True)
if not MARKET_SIGNING_KEY and DEBUG:
    MARKET_SIGNING_KEY = bytes(32)
if len(MARKET_SIGNING_KEY) != 32:
    raise ImproperlyConfigured("MARKET_SIGNING_KEY must be the base64 of 32 random bytes")
# Buyers' secrets are sealed with the first of these Fernet keys; all of them open (vault.py).
VAULT_KEYS = [key for key in os.environ.get("VAULT_KEYS", "").split(",") if key]
if not VAULT_KEYS and DEBUG:
    VAULT_KEYS = [base64.urlsafe_b64encode(bytes(32)).decode()]
try:
    for _key in VAULT_KEYS:
        Fernet(_key)
except ValueError:
    raise ImproperlyConfigured(
        "VAULT_KEYS must be Fernet keys (url-safe base64 of 32 random bytes), the newest first, "
        "with commas between them"
    ) from None
if not VAULT_KEYS:
    raise ImproperlyConfigured("VAULT_KEYS is not set; it has no default outside DEBUG")
# Nodes without a sandbox are accepted only where a person said so here, and nowhere public.
ALLOW_UNSANDBOXED_NODES = _flag("ALLOW_UNSANDBOXED_NODES", default=False)

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "channels",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "rest_framework",
    "marketplace",
    "marketplace.ledger",
    "marketplace.payments",
    "suppliers",
    "buyers",
    "scheduler",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "marketplace.http.MarketErrorMiddleware",
]
ROOT_URLCONF = "marketplace.urls"
ASGI_APPLICATION = "marketplace.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "marketplace.http.page_context",
            ],
            "builtins": ["marketplace.templatetags.market"],
        },
    }
]

DATABASES = {
    "default": _database(
        _url("DATABASE_URL", "postgresql://market@127.0.0.1:5432/market", "postgresql", "postgres")
    )
}
REDIS_URL = _url("REDIS_URL", "redis://127.0.0.1:6379/0", "redis", "rediss")
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        # redis-py's own limit of 100 raises instead of waiting, and a socket would be dropped.
        "CONFIG": {"hosts": [{"address": REDIS_URL, "max_connections": 10_000}]},
    }
}

S3_ENDPOINT_URL = _url("S3_ENDPOINT_URL", "http://127.0.0.1:8333", "http", "https")
S3_ACCESS_KEY = os.environ.get("S3_ACCESS_KEY", "market")
S3_SECRET_KEY = _secret("S3_SECRET_KEY")
S3_BUCKET = os.environ.get("S3_BUCKET", "gridloom")

# Whose wheels jobs' own environments are made of; nodes reach it too.
PACKAGE_INDEX_URL = _url("PACKAGE_INDEX_URL", "https://pypi.org/simple", "http", "https")
# From where container images come, for jobs that name one; the agents' owners have lists of theirs.
IMAGE_REGISTRIES = _registries(os.environ.get("IMAGE_REGISTRIES", ",".join(REGISTRIES)))
# Where bases may be fetched from, by the names that buyers use: "name=https://address,…". Nothing
# else is ever asked for a model, so a buyer can't send us to an address of theirs.
HUBS = _hubs(os.environ.get("HUBS", "huggingface=https://huggingface.co"))
# Where what is being fetched or checked lies meanwhile; it must hold the largest file.
SCRATCH_DIR = Path(
    os.environ.get("SCRATCH_DIR", os.path.join(tempfile.gettempdir(), "gridloom-scratch"))
)

STRIPE_SECRET_KEY = _secret("STRIPE_SECRET_KEY")
STRIPE_WEBHOOK_SECRET = _secret("STRIPE_WEBHOOK_SECRET")
STRIPE_API_BASE = _url("STRIPE_API_BASE", "", "http", "https")
CURRENCY = "USD"

AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator",
                 "CommonPasswordValidator", "NumericPasswordValidator")
]  # fmt: skip
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_SIGNUP_FORM_CLASS = "marketplace.forms.SignupForm"
# A stranger must not learn who has an account; a laptop has no mail server to confirm with.
ACCOUNT_EMAIL_VERIFICATION = os.environ.get("EMAIL_VERIFICATION", "optional")
ACCOUNT_LOGOUT_ON_GET = False
EMAIL_BACKEND = os.environ.get("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend")
LOGIN_REDIRECT_URL = "home"
LOGIN_URL = "account_login"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "marketplace.http.ApiKeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["marketplace.http.HasScope"],
    "DEFAULT_THROTTLE_CLASSES": ["marketplace.throttles.PerMinute"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.CursorPagination",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "marketplace.http.api_exception",
}
# A person's (of the public figures an address's) most requests a minute. A busy program of one org
# stays far below.
THROTTLES = {
    "figures": _per_minute("THROTTLE_FIGURES", 600),
    "proofs": _per_minute("THROTTLE_PROOFS", 60),
    "quotes": _per_minute("THROTTLE_QUOTES", 60),
    "writes": _per_minute("THROTTLE_WRITES", 300),
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Gridloom",
    "DESCRIPTION": "An open marketplace for the GPU hours that AI training needs.",
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

STATIC_URL = "static/"
# Where `collectstatic` gathers them, if anybody runs it.
STATIC_ROOT = os.environ.get("STATIC_ROOT") or None
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
# Served from the source tree by whitenoise, so that a laptop needs no collectstatic.
WHITENOISE_USE_FINDERS = True

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20

_SECURE = SITE_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _SECURE
SECURE_SSL_REDIRECT = False
SECURE_HSTS_SECONDS = 31_536_000 if _SECURE else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _SECURE else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "INFO")},
}
