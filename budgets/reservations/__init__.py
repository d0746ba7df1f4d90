"""Setting room aside for a call, and booking what it used.

``reserve`` costs one round trip to Redis, ``settle`` another; neither touches
PostgreSQL while the limits of the caller are in memory.
"""

from budgets.reservations.admission import look, refuse_killed, reserve
from budgets.reservations.calls import LEAST_GPU_MS, Demand, Reservation
from budgets.reservations.ending import book_recent_again, finish, release, settle
from budgets.reservations.standing import Figures, Standing

__all__ = [
    "LEAST_GPU_MS",
    "Demand",
    "Figures",
    "Reservation",
    "Standing",
    "book_recent_again",
    "finish",
    "look",
    "refuse_killed",
    "release",
    "reserve",
    "settle",
]
