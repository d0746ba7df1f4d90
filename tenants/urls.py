"""The management API of this app, and of the audit, which knows no tenants itself."""

from rest_framework.routers import SimpleRouter

from tenants.api.audit import AuditEventViewSet
from tenants.api.service_accounts import ServiceAccountViewSet
from tenants.api.tenants import MemberViewSet, TeamViewSet, TenantViewSet

router = SimpleRouter(use_regex_path=False)
router.register("tenants", TenantViewSet, basename="tenant")
router.register("teams", TeamViewSet, basename="team")
router.register("members", MemberViewSet, basename="member")
router.register("service-accounts", ServiceAccountViewSet, basename="service-account")
router.register("audit-events", AuditEventViewSet, basename="audit-event")

urlpatterns = router.urls
