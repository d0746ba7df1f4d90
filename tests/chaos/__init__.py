"""Rounds of random work and random faults, and the promises that must hold after each.

A round is drawn from a seed (``plan``), played with real processes (``stage``,
``clients``, ``workers``, ``faults``) under the eyes of a ``watcher``, and judged
when nothing runs any more (``checks``). ``python -m tests.chaos`` plays many.
"""
