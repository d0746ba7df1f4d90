"""Settings of the whole project, read from the environment.

Every variable read here is explained in ``docs/settings.md``; a test compares
the two. Nothing else in the project reads the environment.
"""

import zoneinfo
from base64 import b64decode
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

env = environ.Env()  # type: ignore[no-untyped-call]  # the library has no types

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

# The time zones of this release, not those of the machine: all processes have to agree about periods.
zoneinfo.reset_tzpath(to=())

# Django

SECRET_KEY: str = env.str("SECRET_KEY")
DEBUG: bool = env.bool("DEBUG", default=False)
ALLOWED_HOSTS: list[str] = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
# Behind a proxy that ends TLS a browser tells an origin that we cannot see: https, and the name.
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "config",
    "proxy",
    "budgets",
    "keys",
    "tenants",
    "audit",
    "config.daphne_app.DaphneCommands",
    # Its templates come before those of Django's admin.
    "unfold.apps.BasicAppConfig",
    "config.admin_app.OperatorsAdmin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django.contrib.humanize",
    "channels",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
]

MIDDLEWARE = [
    "tenants.page_headers.PageHeaders",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Before whatever shows or keeps a text, and behind what knows the person.
    "tenants.preferences.Language",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "config.second_factor.SecondFactor",
    "config.origins.Origins",
    # The last, so that all before it is the system's: who somebody is has to be found out first.
    "config.walls.Doors",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
AUTH_USER_MODEL = "tenants.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "portal"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

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
                "tenants.pages.pending_changes",
            ]
        },
    }
]

# Django mails what breaks a page to ADMINS, and there are none. A refusal is no fault.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "faults": {"()": "django.utils.log.CallbackFilter", "callback": lambda record: bool(record.exc_info)}
    },
    "handlers": {"faults": {"class": "logging.StreamHandler", "level": "ERROR", "filters": ["faults"]}},
    "loggers": {"django.request": {"handlers": ["faults"]}},
}

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["tenants.api.bodies.StrictJSON"],
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "keys.api.authentication.ManagementKeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["tenants.api.permissions.MayManage"],
    "DEFAULT_THROTTLE_CLASSES": ["tenants.api.throttling.PerActor"],
    "DEFAULT_PAGINATION_CLASS": "tenants.api.paging.Page",
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "tenants.api.schema.Schema",
    "EXCEPTION_HANDLER": "config.problems.problem",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Tollgate management API",
    "VERSION": VERSION,
    "DESCRIPTION": "Tenants, keys, limits, prices, routes, stops and the audit of a Tollgate gateway.",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/manage/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": ["tenants.api.schema.with_problems"],
}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

# Signing in

OPERATORS_NEED_SECOND_FACTOR: bool = env.bool("OPERATORS_NEED_SECOND_FACTOR", default=True)

ACCOUNT_ADAPTER = "config.signing_in.Accounts"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
# Addresses are entered by those who add people.
ACCOUNT_EMAIL_VERIFICATION = "none"
# A new address counts once its mail was answered; until then the one before does.
ACCOUNT_CHANGE_EMAIL = True
ACCOUNT_EMAIL_SUBJECT_PREFIX = "[Tollgate] "
ACCOUNT_RATE_LIMITS = {"invitation": "20/m/ip", "invite": "30/h/user"}
# Links in mails: where a proxy ends TLS, its origin is named for forms too.
ACCOUNT_DEFAULT_HTTP_PROTOCOL = (
    "https" if any(origin.startswith("https://") for origin in CSRF_TRUSTED_ORIGINS) else "http"
)
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_PRESERVE_USERNAME_CASING = True
# A sign-in lasts for a working day, whatever browsers remember.
ACCOUNT_SESSION_REMEMBER = True
SESSION_COOKIE_AGE = 12 * 3600

MFA_ADAPTER = "config.signing_in.SecondFactors"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_RECOVERY_CODES_SHOW_ONCE = True
# A code may change while it is typed, and a telephone's clock may be off: the one before and the one after
# open as well, as RFC 6238, 5.2 has it.
MFA_TOTP_TOLERANCE = 1

SOCIALACCOUNT_ADAPTER = "config.signing_in.Outside"
# Whoever the other side has verified is the person here with that address.
SOCIALACCOUNT_EMAIL_AUTHENTICATION = True
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
_oidc: dict[str, Any] = {
    "provider_id": "oidc",
    "name": env.str("OIDC_NAME", default="single sign-on"),
    "client_id": env.str("OIDC_CLIENT_ID", default=""),
    "secret": env.str("OIDC_CLIENT_SECRET", default=""),
    "settings": {"server_url": env.str("OIDC_ISSUER", default="")},
}
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [_oidc] if _oidc["settings"]["server_url"] else [],
    }
}

TIME_ZONE = "UTC"
USE_TZ = True
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
FORMAT_MODULE_PATH = ["config.formats"]
STATIC_URL = "/static/"
# Pages are served with the files as they lie in the apps; nothing has to be collected.
WHITENOISE_USE_FINDERS = True

# The admin

UNFOLD = {
    "SITE_TITLE": "Tollgate",
    "SITE_HEADER": "Tollgate",
    "SITE_SYMBOL": "toll",
    "SITE_URL": "/portal/",
    # Functions, for in every text with a dot it looks for one to import, on every page anew.
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda _: f"{STATIC_URL}portal/icon.svg"}
    ],
    "STYLES": [lambda _: f"{STATIC_URL}operators/operators.css"],
    "SHOW_BACK_BUTTON": True,
    "BORDER_RADIUS": "6px",
    "ACCOUNT": {
        "navigation": [
            {"title": "Portal", "link": "/portal/"},
            {"title": "Password, second factor, sessions", "link": "/account/2fa/"},
        ]
    },
    "SIDEBAR": {"navigation": "config.admin_menu.navigation", "show_search": True, "command_search": True},
    # The portal's green, from light to dark.
    "COLORS": {
        "primary": {
            "50": "#effaf8", "100": "#d7f2ee", "200": "#b0e5dd", "300": "#7fd2c7", "400": "#48b7aa",
            "500": "#1f9a8d", "600": "#0f766e", "700": "#0b5f58", "800": "#0c4c47", "900": "#0d3f3c",
            "950": "#042524",
        }
    },
}  # fmt: skip

# PostgreSQL and Redis

DATABASES = {
    "default": {
        **env.db("DATABASE_URL"),
        # One bounded pool per process; a persistent connection per thread leaks under ASGI.
        "CONN_MAX_AGE": 0,
        # A connection that broke while it lay in the pool is replaced, not handed out.
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "pool": {"min_size": 0, "max_size": env.int("DATABASE_POOL_SIZE", default=8), "timeout": 5},
            # A machine that is gone without a word must not keep whoever asks it for a quarter of an hour.
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    }
}

REDIS_URL: str = env.str("REDIS_URL")
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        # Whoever waits for Redis in a thread or a command gives up in the end. Blocking reads ask for less.
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 2, "SOCKET_TIMEOUT": 5},
    }
}

CELERY_BROKER_URL: str = env.str("CELERY_BROKER_URL", default=REDIS_URL)

# Tollgate

# Keeps the digests of secrets useless to whoever has only the database.
KEY_PEPPER: str = env.str("KEY_PEPPER")

# The management API: how often one key or person may ask.
MANAGEMENT_REQUESTS_PER_MINUTE: int = env.int("MANAGEMENT_REQUESTS_PER_MINUTE", default=600)

# Requests: what is read from a client.
MAX_BODY_BYTES: int = env.int("MAX_BODY_BYTES", default=20 * 2**20)
MAX_OUTPUT_TOKENS: int = env.int("MAX_OUTPUT_TOKENS", default=8192)

# Counters.
REDIS_TIMEOUT_SECONDS: float = env.float("REDIS_TIMEOUT_SECONDS", default=0.25)
LEASE_SECONDS: int = env.int("LEASE_SECONDS", default=30)
HEARTBEAT_SECONDS: float = env.float("HEARTBEAT_SECONDS", default=2)
MAX_BACKLOG: int = env.int("MAX_BACKLOG", default=100_000)
SPOOL_DIR = Path(env.str("SPOOL_DIR", default=str(BASE_DIR / ".data" / "spool")))

# Books.
STATEMENT_ISSUER: str = env.str("STATEMENT_ISSUER", default="Tollgate")
# How many months before the present one keep their entries in the ledger; None: all.
_KEPT = env.str("LEDGER_KEEP_MONTHS", default="")
LEDGER_KEEP_MONTHS: int | None = int(_KEPT) if _KEPT else None
if LEDGER_KEEP_MONTHS is not None and LEDGER_KEEP_MONTHS < 2:
    raise ImproperlyConfigured("LEDGER_KEEP_MONTHS is 2 or more, or empty")
ARCHIVE_DIR = Path(env.str("ARCHIVE_DIR", default=str(BASE_DIR / ".data" / "archive")))
# Files of usage, where web processes and the worker both see them.
EXPORT_DIR = Path(env.str("EXPORT_DIR", default=str(BASE_DIR / ".data" / "exports")))

# Visitors: whose word counts for where a request comes from, and who tells humans from robots.
TRUSTED_PROXIES = [ip_network(network) for network in env.list("TRUSTED_PROXIES", default=[])]
HUMAN_CHECK_SERVICE: str = env.str("HUMAN_CHECK_SERVICE", default="")
HUMAN_CHECK_SECRET: str = env.str("HUMAN_CHECK_SECRET", default="")
HUMAN_CHECK_SITE_KEY: str = env.str("HUMAN_CHECK_SITE_KEY", default="")
HUMAN_CHECK_URL: str = env.str("HUMAN_CHECK_URL", default="")
HUMAN_CHECK_SECONDS: float = env.float("HUMAN_CHECK_SECONDS", default=5)

# Upstreams: how long each part of a call may take, and how long the list of models is good for.
CATALOG_REFRESH_SECONDS: float = env.float("CATALOG_REFRESH_SECONDS", default=10)
CATALOG_MAX_AGE_SECONDS: float = env.float("CATALOG_MAX_AGE_SECONDS", default=60)
UPSTREAM_CONNECT_SECONDS: float = env.float("UPSTREAM_CONNECT_SECONDS", default=5)
UPSTREAM_FIRST_BYTE_SECONDS: float = env.float("UPSTREAM_FIRST_BYTE_SECONDS", default=600)
UPSTREAM_SILENCE_SECONDS: float = env.float("UPSTREAM_SILENCE_SECONDS", default=120)
UPSTREAM_TOTAL_SECONDS: float = env.float("UPSTREAM_TOTAL_SECONDS", default=3600)
UPSTREAM_MAX_LINE_BYTES: int = env.int("UPSTREAM_MAX_LINE_BYTES", default=8 * 2**20)
UPSTREAM_MAX_ANSWER_BYTES: int = env.int("UPSTREAM_MAX_ANSWER_BYTES", default=64 * 2**20)

# Notices: how people are told, and which networks webhooks may lead to besides public addresses.
EMAIL_URL: str = env.str("EMAIL_URL", default="")
if EMAIL_URL:
    globals().update(env.email_url("EMAIL_URL"))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL: str = env.str("EMAIL_FROM", default="tollgate@localhost")
WEBHOOK_NETWORKS: list[str] = env.list("WEBHOOK_NETWORKS", default=[])

# Metrics: what whoever reads them has to send. Without it there are none to be read.
METRICS_TOKEN: str = env.str("METRICS_TOKEN", default="")

# Prompt log: keys that encrypt it (without one nobody can opt in), and the most that is kept.
try:
    PROMPT_LOG_KEYS = [b64decode(key, validate=True) for key in env.list("PROMPT_LOG_KEYS", default=[])]
except ValueError:
    PROMPT_LOG_KEYS = [b""]
if any(len(key) != 32 for key in PROMPT_LOG_KEYS):
    raise ImproperlyConfigured("Each of PROMPT_LOG_KEYS is 32 random bytes in base64.")
PROMPT_LOG_MAX_DAYS: int = env.int("PROMPT_LOG_MAX_DAYS", default=30)
PROMPT_LOG_MAX_CHARACTERS: int = env.int("PROMPT_LOG_MAX_CHARACTERS", default=65_536)

# Server: how long a stop waits for what runs, and how long a client may take for each thing it does.
DRAIN_SECONDS: float = env.float("DRAIN_SECONDS", default=30)
CLIENT_HEADER_SECONDS: float = env.float("CLIENT_HEADER_SECONDS", default=15)
CLIENT_BODY_SECONDS: float = env.float("CLIENT_BODY_SECONDS", default=120)
CLIENT_STALL_SECONDS: float = env.float("CLIENT_STALL_SECONDS", default=60)
CLIENT_IDLE_SECONDS: float = env.float("CLIENT_IDLE_SECONDS", default=75)
# Live views: how many sockets one process holds at a time.
LIVE_SOCKETS: int = env.int("LIVE_SOCKETS", default=100)
SERVE_UVLOOP: bool = env.bool("SERVE_UVLOOP", default=True)
