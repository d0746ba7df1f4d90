"""The management API of this app."""

from rest_framework.routers import SimpleRouter

from budgets.api.kill_switches import KillSwitchViewSet
from budgets.api.running_calls import RunningCallViewSet
from budgets.api.statements import StatementViewSet

router = SimpleRouter(use_regex_path=False)
router.register("kill-switches", KillSwitchViewSet, basename="kill-switch")
router.register("running-calls", RunningCallViewSet, basename="running-call")
router.register("statements", StatementViewSet, basename="statement")

urlpatterns = router.urls
