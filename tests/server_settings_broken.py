"""Settings with which no worker can start."""

from tests.server_settings import *  # noqa: F403

ASGI_APPLICATION = "tests.nowhere.application"
