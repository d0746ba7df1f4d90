"""What a management key may be issued for. Each view says which of these it asks for."""

from __future__ import annotations

SCOPES = {
    "tenants:read": "tenants, their teams, members and service accounts",
    "tenants:write": "the same, to create and change them",
    "keys:read": "keys for calls, never their secrets",
    "keys:write": "issue, change, rotate, disable and revoke keys for calls",
    "budgets:read": "budgets, how they stand, and rate limits",
    "budgets:write": "set, raise and remove budgets and rate limits",
    "prices:read": "what models cost",
    "prices:write": "set and remove prices",
    "routes:read": "upstreams and other names of models",
    "routes:write": "change where calls go",
    "switches:read": "kill switches",
    "switches:write": "arm and lift kill switches",
    "calls:read": "calls that run now",
    "calls:write": "end running calls",
    "usage:read": "what was used, down to each request",
    "exports:read": "exports that the key has ordered, and their files",
    "exports:write": "order exports",
    "statements:read": "statements of closed months",
    "audit:read": "who changed what",
}
