"""The management API of this app."""

from rest_framework.routers import SimpleRouter

from keys.api.keys import KeyViewSet

router = SimpleRouter(use_regex_path=False)
router.register("keys", KeyViewSet, basename="key")

urlpatterns = router.urls
