"""Pages for people. The doors for programs are in ``proxy.urls``, behind a handler of their own."""

from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
]
