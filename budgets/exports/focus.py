"""Usage as FOCUS 1.2 has it: one row for each tenant, key, model, meter and day.

FOCUS (https://focus.finops.org) names the columns that importers of cloud bills
know. A call has one cost, rounded up once; its meters (input, cached input,
output, GPU time) have rates of their own. So each entry's cost is split: every
meter gets the whole micro-USD of quantity times rate, and what rounding left
goes to the meter with the largest product, of equal ones to the first. The
parts add up to the entry, and all rows to the ledger. A cost of an entry
without rates is on the meter of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from budgets.exports import calendars
from budgets.exports.calendars import Calendars
from budgets.exports.columns import Column, ids, integers, texts, usd
from budgets.exports.queries import Query, entries_of
from budgets.pricing import MILLIONTHS_PER_GPU_MS, PER_MILLION
from budgets.usage import Selection

# Who provides, sells and bills it, as FOCUS asks: this gateway.
PROVIDER = "Tollgate"


@dataclass(frozen=True, slots=True)
class Meter:
    """What is measured, and the units in which it is counted and priced.

    ``quantity`` and ``estimated`` are expressions over an entry ``e``;
    ``weight``: millionths of a micro-USD for one of it at a rate of one.
    ``places``: a pricing unit is 10**places of what is counted.
    """

    name: str
    title: str
    quantity: str
    rate: str
    weight: int
    unit: str
    pricing_unit: str
    places: int


METERS = (
    Meter(
        "input", "Input tokens", "(e.input_tokens - e.cached_tokens)", "input_price", 1,
        "Tokens", "1000000 Tokens", 6,
    ),
    Meter(
        "cached", "Cached input tokens", "e.cached_tokens", "cached_price", 1,
        "Tokens", "1000000 Tokens", 6,
    ),
    Meter(
        "output", "Output tokens", "e.output_tokens", "output_price", 1,
        "Tokens", "1000000 Tokens", 6,
    ),
    Meter(
        "gpu", "GPU time", "e.gpu_ms", "gpu_price", MILLIONTHS_PER_GPU_MS,
        "Milliseconds", "Seconds", 3,
    ),
)  # fmt: skip
REQUESTS = Meter("requests", "Requests", "e.requests", "", 0, "Requests", "Requests", 0)
RATES = tuple(meter.rate for meter in METERS)

COLUMNS = (
    *(usd(name) for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")),
    *texts(
        "BillingCurrency", "BillingAccountId", "BillingAccountName", "BillingAccountType",
        "BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd",
        "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "InvoiceId",
        "InvoiceIssuerName", "ProviderName", "PublisherName",
        "ServiceCategory", "ServiceSubcategory", "ServiceName",
    ),
    *ids("SubAccountId"),
    *texts("SubAccountName", "SubAccountType", "ResourceId", "ResourceName", "ResourceType"),
    *texts("SkuId", "SkuMeter", "SkuPriceId"),
    *integers("ConsumedQuantity"),
    *texts("ConsumedUnit"),
    Column("PricingQuantity", "fixed", 6),
    *texts("PricingUnit", "PricingCategory", "PricingCurrency"),
    *(usd(name) for name in ("ListUnitPrice", "ContractedUnitPrice")),
    *texts("Tags"),
    *integers("x_CostMicroUsd", "x_EstimatedQuantity", "x_Requests"),
    *(Column(name, "day") for name in ("x_Day", "x_ClosedMonth")),
    *texts("x_TimeZone", "x_Kind"),
)  # fmt: skip

# By what rows are told apart, but for the meter.
GROUP = (
    "tenant_id", "tenant", "team_id", "team", "member_id", "member", "key_id", "key", "model", "day",
    "kind", "closed_month", "correction", "price_id", *RATES,
)  # fmt: skip

# A difference of a month that is over corrects its bill; one of the month that runs is part of it.
CORRECTION = """(
  e.closed_month IS NOT NULL OR e.kind <> 'usage' AND date_trunc('month', e.day) <> (
    SELECT date_trunc('month', u.day) FROM budgets_ledgerentry AS u
    WHERE u.request_id = coalesce(e.corrects, e.request_id) AND u.kind = 'usage'
  )
) IS TRUE"""


def _product(meter: Meter) -> str:
    return f"({meter.quantity} * coalesce(e.{meter.rate}, 0) * {meter.weight})"


def _split_costs() -> str:
    """The part of each meter in the cost of an entry, as ``<meter>_cost``, and what is on no meter."""
    whole = [f"p.{meter.name}_product / {PER_MILLION}" for meter in METERS]
    rest = f"e.cost_micro_usd - {' - '.join(f'({part})' for part in whole)}"
    largest = f"greatest({', '.join(f'abs(p.{meter.name}_product)' for meter in METERS)})"
    cases = " ".join(
        f"WHEN abs(p.{meter.name}_product) = {largest} THEN {number}" for number, meter in enumerate(METERS)
    )
    parts = ", ".join(
        f"{part} + CASE largest WHEN {number} THEN rest ELSE 0 END AS {meter.name}_cost"
        for number, (part, meter) in enumerate(zip(whole, METERS, strict=True))
    )
    products = ", ".join(f"{_product(meter)} AS {meter.name}_product" for meter in METERS)
    return f"""
CROSS JOIN LATERAL (SELECT {products}) AS p
CROSS JOIN LATERAL (
  SELECT {rest} AS rest, CASE WHEN {largest} = 0 THEN -1 {cases} END AS largest
) AS l
CROSS JOIN LATERAL (
  SELECT {parts}, CASE largest WHEN -1 THEN rest ELSE 0 END AS requests_cost
) AS c"""


def _summed(entries: str) -> str:
    """All meters of each group side by side."""
    group = ", ".join(
        f"{CORRECTION} AS correction" if name == "correction" else f"e.{name}" for name in GROUP
    )
    grouped = ", ".join(name if name == "correction" else f"e.{name}" for name in GROUP)
    sums = ", ".join(
        f"sum({meter.quantity}) AS {meter.name}_quantity, sum({meter.name}_cost) AS {meter.name}_cost, "
        f"coalesce(sum({meter.quantity}) FILTER (WHERE NOT e.exact), 0) AS {meter.name}_estimated"
        for meter in (*METERS, REQUESTS)
    )
    return f"SELECT {group}, {sums} FROM ({entries}) AS e {_split_costs()} GROUP BY {grouped}"  # noqa: S608


def _meters() -> str:
    """Each meter of a group as a row of its own, if it has anything."""
    rows = ", ".join(
        f"({number}, '{meter.name}', '{meter.title}', {meter.name}_quantity, {meter.name}_estimated, "
        f"{meter.name}_cost, {'e.' + meter.rate if meter.rate else 'NULL::bigint'}, "
        f"'{meter.unit}', '{meter.pricing_unit}', {10 ** (6 - meter.places)}, {meter.name != 'requests'})"
        for number, meter in enumerate((*METERS, REQUESTS))
    )
    return f"""
CROSS JOIN LATERAL (VALUES {rows}) AS m (
  number, meter, title, quantity, estimated, cost, rate, unit, pricing_unit, millionths, measured
)"""


# The statement of the day's month, if that is closed.
INVOICE = """
LEFT JOIN (
  SELECT c.tenant_id, c.month, s.number, s.issuer
  FROM budgets_statement AS s JOIN budgets_closedmonth AS c ON c.id = s.closing_id
  WHERE c.reopened_at IS NULL
) AS invoice ON invoice.tenant_id = e.tenant_id AND invoice.month = date_trunc('month', e.day)::date"""

# FOCUS wants a prefix before the names of tags that the provider chose.
TAGS = """
jsonb_strip_nulls(jsonb_build_object(
  'tollgate/key', e.key, 'tollgate/key_id', e.key_id,
  'tollgate/member', nullif(e.member, ''), 'tollgate/member_id', e.member_id,
  'tollgate/team', nullif(e.team, ''), 'tollgate/team_id', e.team_id
))::text"""

DESCRIPTION = """
CASE WHEN e.closed_month IS NOT NULL THEN 'Late, of ' || to_char(e.closed_month, 'YYYY-MM') || ': '
     WHEN e.kind <> 'usage' THEN initcap(e.kind) || ': ' ELSE '' END || m.title || ' of ' || e.model"""

VALUES = {
    "BilledCost": "m.cost",
    "EffectiveCost": "m.cost",
    "ListCost": "m.cost",
    "ContractedCost": "m.cost",
    "BillingCurrency": "'USD'",
    "BillingAccountId": f"'{PROVIDER.lower()}'",
    "BillingAccountName": f"'{PROVIDER}'",
    "BillingAccountType": "'Gateway'",
    "BillingPeriodStart": "of_day.month_start",
    "BillingPeriodEnd": "of_day.month_end",
    "ChargePeriodStart": "of_day.day_start",
    "ChargePeriodEnd": "of_day.day_end",
    "ChargeCategory": "'Usage'",
    "ChargeClass": "CASE WHEN e.correction THEN 'Correction' END",
    "ChargeDescription": DESCRIPTION,
    "ChargeFrequency": "'Usage-Based'",
    "InvoiceId": "invoice.number",
    # A parameter: people chose it.
    "InvoiceIssuerName": "coalesce(invoice.issuer, %s)",
    "ProviderName": f"'{PROVIDER}'",
    "PublisherName": f"'{PROVIDER}'",
    "ServiceCategory": "'AI and Machine Learning'",
    "ServiceSubcategory": "'Generative AI'",
    "ServiceName": f"'{PROVIDER}'",
    "SubAccountId": "e.tenant_id",
    "SubAccountName": "e.tenant",
    "SubAccountType": "'Tenant'",
    "ResourceId": "e.model",
    "ResourceName": "e.model",
    "ResourceType": "'Model'",
    "SkuId": "e.model || '/' || m.meter",
    "SkuMeter": "m.title",
    "SkuPriceId": "e.price_id::text || '/' || m.meter",
    "ConsumedQuantity": "m.quantity",
    "ConsumedUnit": "m.unit",
    "PricingQuantity": "m.quantity * m.millionths",
    "PricingUnit": "m.pricing_unit",
    "PricingCategory": "'Standard'",
    "PricingCurrency": "'USD'",
    "ListUnitPrice": "m.rate",
    "ContractedUnitPrice": "m.rate",
    "Tags": TAGS,
    "x_CostMicroUsd": "m.cost",
    "x_EstimatedQuantity": "m.estimated",
    "x_Requests": "e.requests_quantity",
    "x_Day": "e.day",
    "x_ClosedMonth": "e.closed_month",
    "x_TimeZone": "of_day.time_zone",
    "x_Kind": "e.kind",
}


def query(selection: Selection, days: Calendars) -> Query:
    """The rows, in the order of day, tenant, key, model and meter."""
    entries, parameters = entries_of(selection)
    columns = ", ".join(f'{VALUES[column.name]} AS "{column.name}"' for column in COLUMNS)
    sql = f"""
WITH {calendars.CTE}
SELECT {columns} FROM ({_summed(entries)}) AS e {_meters()} {calendars.JOIN} {INVOICE}
WHERE m.cost <> 0 OR m.quantity <> 0 AND m.measured
ORDER BY e.day, e.tenant COLLATE "C", e.key COLLATE "C", e.model COLLATE "C", m.number,
  {", ".join(f"e.{name}" for name in GROUP)}"""  # noqa: S608
    return sql, [*days.parameters(), settings.STATEMENT_ISSUER, *parameters]


def figures_in(row: dict[str, str]) -> dict[str, int]:
    """What a row adds to the figures of the ledger; it tells nothing of requests and thinking."""
    quantity, meter = int(row["ConsumedQuantity"]), row["SkuMeter"]
    figures = {"cost_micro_usd": int(row["x_CostMicroUsd"])}
    if row["ConsumedUnit"] == "Tokens":
        name = "output_tokens" if meter == "Output tokens" else "input_tokens"
        figures |= {name: quantity, "estimated_tokens": int(row["x_EstimatedQuantity"])}
        figures["cached_tokens"] = quantity if meter == "Cached input tokens" else 0
    if meter == "GPU time":
        figures["gpu_ms"] = quantity
    return figures
