"""The facts of this app, by what they are about; migrations and others know them from here."""

from budgets.models.books import (
    BudgetPeriod,
    CounterEpoch,
    LateUsage,
    LedgerEntry,
    ParkedRecord,
    PeriodClosing,
    SpooledSettlement,
    UsageRollup,
)
from budgets.models.costs import PriceProposal, UpstreamCost
from budgets.models.estimates import Estimate, EstimateSample, Side
from budgets.models.exports import Export
from budgets.models.limits import (
    WITH_ITS_LIMIT,
    Budget,
    BudgetChange,
    LimitRaise,
    OutageCredit,
    RateLimit,
    default_thresholds,
    kind_of_limit,
)
from budgets.models.months import REOPENING_EXPIRES, ArchivedMonth, ClosedMonth, Statement
from budgets.models.notices import (
    Delivery,
    Happening,
    Notice,
    Recipient,
    every_happening,
    happenings_told_of,
    new_salt,
    trouble_with_url,
)
from budgets.models.prices import LARGEST_GPU_PRICE, LARGEST_PRICE, Price
from budgets.models.raise_requests import RaiseRequest
from budgets.models.refused import RefusedCall
from budgets.models.scopes import (
    CANONICAL,
    LARGEST,
    SCOPE_COLUMNS,
    WRITE_IT_SO,
    Measure,
    PeriodKind,
    Scope,
    ScopedRow,
    Unit,
)
from budgets.models.switches import (
    KillSwitch,
    KillSwitches,
    KillSwitchLift,
    RunningCall,
    in_seven_days,
)
from budgets.models.verifications import Verification

__all__ = [
    "CANONICAL",
    "LARGEST",
    "LARGEST_GPU_PRICE",
    "LARGEST_PRICE",
    "REOPENING_EXPIRES",
    "SCOPE_COLUMNS",
    "WITH_ITS_LIMIT",
    "WRITE_IT_SO",
    "ArchivedMonth",
    "Budget",
    "BudgetChange",
    "BudgetPeriod",
    "ClosedMonth",
    "CounterEpoch",
    "Delivery",
    "Estimate",
    "EstimateSample",
    "Export",
    "Happening",
    "KillSwitch",
    "KillSwitchLift",
    "KillSwitches",
    "LateUsage",
    "LedgerEntry",
    "LimitRaise",
    "Measure",
    "Notice",
    "OutageCredit",
    "ParkedRecord",
    "PeriodClosing",
    "PeriodKind",
    "Price",
    "PriceProposal",
    "RaiseRequest",
    "RateLimit",
    "Recipient",
    "RefusedCall",
    "RunningCall",
    "Scope",
    "ScopedRow",
    "Side",
    "SpooledSettlement",
    "Statement",
    "Unit",
    "UpstreamCost",
    "UsageRollup",
    "Verification",
    "default_thresholds",
    "every_happening",
    "happenings_told_of",
    "in_seven_days",
    "kind_of_limit",
    "new_salt",
    "trouble_with_url",
]
