"""A simulated Ollama, for tests, for benchmarks and for trying Tollgate without a model.

A plain asyncio server of the standard library, because tests have to control
every byte and packet. It shares no code with the gateway, on purpose: its own
reading of names, JSON and paths is what the gateway's is compared with.
``docs/simulator.md`` tells what it answers and which faults it knows.
"""

from proxy.simulator.server import Simulator, SimulatorThread

__all__ = ["Simulator", "SimulatorThread"]
