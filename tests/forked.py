"""Processes of one training, forked: a second instead of twenty to import everything again."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults.lives import print_to

_RUNNING = -1000


def run_ranks(
    work: Callable[[], None], num_processes: int, folder: Path, *, seconds: float = 60
) -> list[int]:
    """Do the same work in several processes; what each of them exits with.

    They have the environment variables that Lightning's launcher sets, and write what they print to
    ``output_RANK.txt``. 0 is success, 1 an exception, a negative number a signal. Those that are
    still running when the seconds are over are killed.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [_fork(work, rank, port, folder) for rank in range(num_processes)]
    statuses, deadline = dict.fromkeys(ranks, _RUNNING), time.monotonic() + seconds
    while _RUNNING in statuses.values():
        if time.monotonic() > deadline:
            _kill([pid for pid, status in statuses.items() if status == _RUNNING])
        for pid in [pid for pid, status in statuses.items() if status == _RUNNING]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return list(statuses.values())


def _kill(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def _fork(work: Callable[[], None], rank: int, port: int, folder: Path) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ |= {"LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        print_to(folder / f"output_{rank}.txt")
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
