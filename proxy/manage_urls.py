"""The management API of this app; the doors for programs that call are in ``proxy.urls``."""

from rest_framework.routers import SimpleRouter

from proxy.api.routes import AliasViewSet, UpstreamViewSet

router = SimpleRouter(use_regex_path=False)
router.register("upstreams", UpstreamViewSet, basename="upstream")
router.register("aliases", AliasViewSet, basename="alias")

urlpatterns = router.urls
