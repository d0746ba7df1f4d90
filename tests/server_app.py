"""The whole application, with the views of ``tests.server_urls`` behind the doors."""

from config import asgi
from proxy.handler import ProxyHandler

asgi.doors = ProxyHandler("tests.server_urls")
application = asgi.application
