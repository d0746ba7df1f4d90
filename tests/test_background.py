"""The jobs beside the requests."""

from __future__ import annotations

import asyncio

import pytest

from config import background as module
from config.background import Background


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)


def test_a_job_that_fails_or_ends_begins_again_and_the_others_go_on(caplog):
    jobs, begun = Background(), []

    async def unsteady() -> None:
        begun.append("unsteady")
        if len(begun) < 3:
            raise RuntimeError("broke")

    async def steady() -> None:
        begun.append("steady")
        await asyncio.sleep(600)

    async def run() -> None:
        jobs.add("unsteady", unsteady)
        jobs.add("steady", steady)
        jobs.start()
        jobs.start()
        async with asyncio.timeout(30):
            while begun.count("unsteady") < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await jobs.stop()

    asyncio.run(run())

    assert begun.count("steady") == 1
    assert "background work unsteady failed" in caplog.text
    assert "background work unsteady ended by itself" in caplog.text


def test_the_last_things_are_done_while_the_jobs_still_run_and_one_that_fails_stops_no_other():
    jobs, happened = Background(), []

    async def job() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            happened.append("job ended")

    async def fails() -> None:
        raise RuntimeError("broke")

    async def last() -> None:
        happened.append("last thing")

    async def run() -> None:
        jobs.add("job", job)
        jobs.add_last("fails", fails)
        jobs.add_last("last", last)
        jobs.start()
        await asyncio.sleep(0)
        await jobs.stop()

    asyncio.run(run())

    assert happened == ["last thing", "job ended"]


def test_a_second_loop_has_jobs_of_its_own():
    jobs, loops = Background(), []

    async def job() -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(600)

    async def run() -> None:
        jobs.start()
        await asyncio.sleep(0)
        await jobs.stop()

    jobs.add("job", job)
    asyncio.run(run())
    asyncio.run(run())

    assert len(set(loops)) == 2
