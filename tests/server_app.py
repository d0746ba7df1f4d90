"""The whole application, with the views of ``tests.server_urls`` behind the doors."""

from config.asgi import Gateway
from proxy.handler import ProxyHandler

application = Gateway(ProxyHandler("tests.server_urls"))
