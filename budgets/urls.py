"""The management API of this app."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from budgets.api.exports import ExportViewSet
from budgets.api.kill_switches import KillSwitchViewSet
from budgets.api.limits import BudgetViewSet, RateLimitViewSet
from budgets.api.prices import PriceViewSet
from budgets.api.running_calls import RunningCallViewSet
from budgets.api.statements import StatementViewSet
from budgets.api.usage import UsageViewSet

router = SimpleRouter(use_regex_path=False)
router.register("exports", ExportViewSet, basename="export")
router.register("budgets", BudgetViewSet, basename="budget")
router.register("rate-limits", RateLimitViewSet, basename="rate-limit")
router.register("prices", PriceViewSet, basename="price")
router.register("kill-switches", KillSwitchViewSet, basename="kill-switch")
router.register("running-calls", RunningCallViewSet, basename="running-call")
router.register("statements", StatementViewSet, basename="statement")

urlpatterns = [
    path("usage/", UsageViewSet.as_view({"get": "sums"}), name="usage"),
    path("usage/entries/", UsageViewSet.as_view({"get": "entries"}), name="usage-entries"),
    *router.urls,
]
