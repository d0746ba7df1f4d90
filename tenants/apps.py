from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants.invitations import withdraw_those_of
        from tenants.leaving import member_leaves
        from tenants.sign_in_audit import connect

        member_leaves.connect(withdraw_those_of)
        connect()
