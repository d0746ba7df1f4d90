from django.apps import AppConfig, apps
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate


class ConfigConfig(AppConfig):
    name = "config"

    def ready(self) -> None:
        from audit.walled_role import watch
        from config import checks  # noqa: F401 - registers itself
        from config.walls import build

        connection_created.connect(watch)
        # Sent once for each application that has models, when all migrations are done.
        post_migrate.connect(build, sender=apps.get_app_config("tenants"))
