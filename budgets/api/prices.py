"""What models cost, under ``/manage/v1/prices/``."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import services
from budgets.api.money import as_usd
from budgets.models import Price
from budgets.models.prices import LARGEST_GPU_PRICE, LARGEST_PRICE
from tenants.api.fields import MomentField, TenantField, WithForce
from tenants.api.managed import Managed

RATES = ("input_price", "cached_price", "output_price", "gpu_price")


class PriceSerializer(WithForce, serializers.ModelSerializer):
    """A price from a moment on: whole micro-USD for a million tokens, and for a second of GPU time.

    Each rate is there in dollars besides, as a decimal string.
    """

    tenant = serializers.CharField(source="tenant.slug", default=None, allow_null=True)
    tenant_id = serializers.UUIDField(allow_null=True)
    input_price_usd = serializers.SerializerMethodField()
    cached_price_usd = serializers.SerializerMethodField()
    output_price_usd = serializers.SerializerMethodField()
    gpu_price_usd = serializers.SerializerMethodField()

    class Meta:
        model = Price
        fields = [
            "id", "model", "tenant_id", "tenant", "starts_at", "free", *RATES,
            *(f"{rate}_usd" for rate in RATES), "in_force",
        ]  # fmt: skip

    def get_input_price_usd(self, price: Price) -> str:
        return as_usd(price.input_price)

    def get_cached_price_usd(self, price: Price) -> str:
        return as_usd(price.cached_price)

    def get_output_price_usd(self, price: Price) -> str:
        return as_usd(price.output_price)

    def get_gpu_price_usd(self, price: Price) -> str:
        return as_usd(price.gpu_price)


class NewPriceSerializer(serializers.Serializer):
    """Micro-USD. Without ``cached_price`` cached input costs what other input does."""

    model = serializers.CharField(max_length=200)
    tenant = TenantField(required=False, allow_null=True, help_text="Slug. Left out: everybody's price.")
    starts_at = MomentField(required=False, allow_null=True, help_text="Left out: now.")
    free = serializers.BooleanField(required=False)
    input_price = serializers.IntegerField(min_value=0, max_value=LARGEST_PRICE, required=False)
    cached_price = serializers.IntegerField(
        min_value=0, max_value=LARGEST_PRICE, required=False, allow_null=True
    )
    output_price = serializers.IntegerField(min_value=0, max_value=LARGEST_PRICE, required=False)
    gpu_price = serializers.IntegerField(min_value=0, max_value=LARGEST_GPU_PRICE, required=False)


class PriceViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Prices. POST sets one; one of the same model, tenant and moment is replaced."""

    queryset = Price.objects.select_related("tenant")
    serializer_class = PriceSerializer
    scope = "prices"
    needs = {
        "list": "budgets.view_price",
        "retrieve": "budgets.view_price",
        "create": ("budgets.add_price", "budgets.change_price"),
        "destroy": "budgets.delete_price",
    }
    filters = {"tenant": "tenant__slug", "model": "model"}

    @extend_schema(request=NewPriceSerializer, responses={201: PriceSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.set_price(**self.read(NewPriceSerializer), actor=self.actor), 201)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_price(price=self.get_object(), actor=self.actor)
        return Response(status=204)
