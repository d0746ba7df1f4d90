from django.apps import AppConfig


class BudgetsConfig(AppConfig):
    name = "budgets"

    def ready(self) -> None:
        from budgets.running_calls import running_of_keys
        from keys.above import above

        above.running_calls = running_of_keys
