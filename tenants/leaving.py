"""Told, within the transaction, to those above this app when somebody who has keys goes.

Each receiver returns how many keys it revoked; what it raises undoes everything.
"""

from django.dispatch import Signal

# With ``member`` and ``actor``, before the membership ends.
member_leaves = Signal()
# With ``account`` and ``actor``, before the service account is closed.
service_account_closes = Signal()
