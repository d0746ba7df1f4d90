from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants.invitations import withdraw_those_of
        from tenants.leaving import member_leaves

        member_leaves.connect(withdraw_those_of)
