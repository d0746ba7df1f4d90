from django.apps import AppConfig


class ProxyConfig(AppConfig):
    name = "proxy"

    def ready(self) -> None:
        from keys.above import above
        from proxy.previews import preview

        above.preview = preview
