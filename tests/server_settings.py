"""The settings under which the tests of the server run it: everything real but the views."""

from config.settings import *  # noqa: F403

ASGI_APPLICATION = "tests.server_app.application"
MAX_BODY_BYTES = 2 * 2**20
