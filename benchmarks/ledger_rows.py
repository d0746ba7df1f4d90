"""A ledger of any size, made up by the database itself."""

from __future__ import annotations

from hashlib import md5
from uuid import UUID

# Takes rows, tenant id, tenant, first day; spread over 28 days and all their hours, 40 members with a key
# each in four teams, and five models, of which each key uses two: 53,760 rollups at most. The ids of
# people, teams and keys are made of their names (``id_of``).
FILL = """
INSERT INTO budgets_ledgerentry (
  request_id, kind, tenant_id, tenant, team_id, team, member_id, member, key_id, key, model, upstream, route,
  operation, dialect, stream, day, admitted_at, started_at, first_byte_at, ended_at, requests, input_tokens,
  cached_tokens, output_tokens, thinking_tokens, gpu_ms, cost_micro_usd, run, price_id, input_price,
  cached_price, output_price, gpu_price, exact, late, outcome, status, recorded_at
)
SELECT
  (lpad(to_hex((extract(epoch FROM ended_at) * 1000)::bigint), 12, '0') || '7' || left(md5(n::text), 3)
    || 'a' || substr(md5(n::text), 4, 15))::uuid,
  'usage', %(tenant_id)s, %(tenant)s, md5('team ' || who %% 4)::uuid, 'team ' || who %% 4,
  md5('member ' || who)::uuid, 'member ' || who, md5('key ' || who)::uuid, 'key ' || who,
  'model-' || (who + n / 1120 %% 2) %% 5 || ':latest', 'main', 'chat', 'chat',
  'OLLAMA', true, %(first_day)s::date + (n %% 28)::int, ended_at - interval '3 seconds',
  ended_at - interval '2 seconds', ended_at - interval '1 second', ended_at, 1, input_tokens, cached_tokens,
  output_tokens, 0, 1000 + n %% 500,
  ((input_tokens - cached_tokens) * 300000 + cached_tokens * 30000 + output_tokens * 1000000 + 999999)
    / 1000000,
  '', md5('price')::uuid, 300000, 30000, 1000000, 0, n %% 10 > 0, false, 'completed', 200, ended_at
FROM generate_series(1, %(rows)s) AS n
CROSS JOIN LATERAL (SELECT
  n / 28 %% 40 AS who,
  %(first_day)s::date + (n %% 28) * interval '1 day' + (n %% 86000) * interval '1 second' AS ended_at,
  (100 + n %% 900)::bigint AS input_tokens, (n %% 100)::bigint AS cached_tokens,
  (50 + n %% 450)::bigint AS output_tokens
) AS made_up"""


def id_of(name: str) -> UUID:
    """The id of a team, a member or a key in these rows, such as ``key 7``."""
    return UUID(md5(name.encode(), usedforsecurity=False).hexdigest())
