from django.apps import AppConfig


class KeysConfig(AppConfig):
    name = "keys"

    def ready(self) -> None:
        from keys.leaving import revoke_keys_of_member, revoke_keys_of_service_account
        from tenants.leaving import member_leaves, service_account_closes

        member_leaves.connect(revoke_keys_of_member)
        service_account_closes.connect(revoke_keys_of_service_account)
