"""Pages for people, and the API to manage with. The doors for programs are in ``proxy.urls``."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("manage/v1/", include("budgets.urls")),
    path("portal/", include("tenants.portal")),
]
