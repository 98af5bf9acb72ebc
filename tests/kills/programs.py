"""Start programs by fork from a process that has already imported torch and the like.

A process takes several seconds to import them, and a test that kills programs starts many. Each
program still imports the code of this repository itself.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess

import psutil
import torch

LIBRARIES = ("torch._dynamo", "diffusers.models", "transformers.modeling_utils", "peft", "pandas")
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([*LIBRARIES, "accelerate", "av", "pydantic", "scipy.stats"])
FORK = multiprocessing.get_context("fork")


def start_program(
    module: str, *arguments: str, processes: int = 1, variables: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `python -m module`, on one thread.

    Args:
        processes: if more than one, start as many as `torchrun` would, from a launcher that stops
            them all when one fails.
        variables: added to the environment.
    """
    target = _launch if processes > 1 else _run
    ranks = (processes,) if processes > 1 else ()
    process = FRESH.Process(target=target, args=(*ranks, module, arguments, dict(variables or {})))
    process.start()
    atexit.register(kill_tree, process)  # else Python waits for it after a failed test
    return process


def wait_for(program: BaseProcess, *, seconds: float = 600) -> int | None:
    """Return the exit code of a program, or None when it takes longer than `seconds`."""
    program.join(seconds)
    return program.exitcode


def kill_tree(program: BaseProcess) -> None:
    """Kill a program and the processes that it started, all at once."""
    tree = []
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(program.pid)
        tree = [*launcher.children(recursive=True), launcher]
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree)
    program.join()


def _run(module: str, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv[1:] = arguments  # runpy sets the first
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _launch(
    processes: int, module: str, arguments: Sequence[str], variables: Mapping[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        everything = {**variables, **place, **own}
        ranks.append(FORK.Process(target=_run, args=(module, arguments, everything)))
        ranks[-1].start()
    while not any(codes := [process.exitcode for process in ranks]) and None in codes:
        time.sleep(0.1)  # as often as `torchrun` looks
    for process in ranks:
        process.terminate()
    sys.exit(any(codes))
