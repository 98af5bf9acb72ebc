"""Servers of a published study with raters of their own, to be killed at any moment.

    python -m tests.support.servers.replica_server FOLDER DATA_SET

For each line "NAME LIFE" that it reads, a process that has imported everything forks a server whose
disk is FOLDER/NAME. The lines that are printed, each with NAME and LIFE before:

started PID      the server exists
stored RATER     a rater's answers to a pair were acknowledged
synced COUNT     the first COUNT acknowledged in this life are in the data set
"""

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

from human_eval.errors import StudyNotReady
from human_eval.publishing.data_set import DataSet
from human_eval.publishing.replica import Place, Replica
from human_eval.study.store import StudyStore
from tests.support.servers.fake_hub import TOKEN
from tests.support.studies import answer, claim_pair, enter_rater, submit_answers

PAUSE = 0.02  # seconds between two answers, and between two rounds of the journal


def serve(place: Path, data_set: str, life: str) -> None:
    def tell(text: str) -> None:
        os.write(1, f"{place.name} {life} {text}\n".encode())

    def sync() -> None:
        while True:
            before = len(stored)
            replica.sync()
            if not replica.status.problem:
                tell(f"synced {before}")
            time.sleep(PAUSE)

    tell(f"started {os.getpid()}")
    stored: list[str] = []
    replica = Replica(Place(place, kept=False), DataSet(data_set, TOKEN))
    store = open_when_ready(replica)
    threading.Thread(target=sync, daemon=True).start()
    while True:
        name = f"{place.name}-{life}-{len(stored)}"
        lease = claim_pair(store, enter_rater(store, "link", name))
        assert lease is not None, "raise raters_per_pair"
        submit_answers(store, answer(store, lease, "left" if len(stored) % 3 else "right"))
        stored.append(name)
        tell(f"stored {name}")
        time.sleep(PAUSE)


def open_when_ready(replica: Replica) -> StudyStore:
    while True:
        try:
            return replica.open()
        except StudyNotReady:
            time.sleep(PAUSE)


def main() -> None:
    folder, data_set = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    for line in sys.stdin:
        name, life = line.split()
        if os.fork() == 0:
            serve(Path(folder, name), data_set, life)


if __name__ == "__main__":
    main()
