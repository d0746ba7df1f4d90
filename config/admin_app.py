from django.contrib.admin.apps import AdminConfig


class OperatorsAdmin(AdminConfig):
    """Django's admin, with the site of this gateway in place of Django's own."""

    default_site = "config.admin_site.OperatorsSite"
