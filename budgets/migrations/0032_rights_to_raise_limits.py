"""Whoever was given a right over raises of budgets has it over those of any limit."""

from typing import Any

from django.db import migrations

RIGHTS = ("add", "change", "delete", "view")


def _rename(apps: Any, before: str, after: str, kind: str) -> None:
    # A database that is new has none yet, and gets them by their new name.
    permissions = apps.get_model("auth", "Permission").objects.filter(content_type__app_label="budgets")
    for right in RIGHTS:
        permissions.filter(codename=f"{right}_{before}").update(
            codename=f"{right}_{after}", name=f"Can {right} {kind}"
        )


def rename(apps: Any, _: Any) -> None:
    """Give the rights the name of the model, so that everybody keeps theirs."""
    _rename(apps, "budgetraise", "limitraise", "limit raise")


def rename_back(apps: Any, _: Any) -> None:
    """Give them the name of before, and drop what earlier releases have no room for."""
    for name in ("RaiseRequest", "LimitRaise"):
        apps.get_model("budgets", name).objects.filter(budget=None).delete()
    _rename(apps, "limitraise", "budgetraise", "budget raise")


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0031_raises_of_rate_limits"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        migrations.RunPython(rename, rename_back),
    ]
