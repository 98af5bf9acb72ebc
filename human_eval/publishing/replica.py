"""One server of a published study: it rebuilds the study at its start, and journals every vote.

On a machine that keeps nothing, the database is a copy of the snapshot with all journals taken in.
Where the disk is kept, the database of the last run goes on. Every round commits what is new here,
and takes in what other servers committed.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select

from human_eval.errors import StudyError, StudyNotReady
from human_eval.publishing import journal
from human_eval.publishing.data_set import DataSet, HubProblem
from human_eval.publishing.journal import JournalFile, MissingRow, Origin, Position
from human_eval.server.vote_service import SyncStatus
from human_eval.storage.database import safe_sqlite
from human_eval.storage.lock import alone
from human_eval.storage.tables import AssignmentRow, Vote
from human_eval.study.media_check import find_lost_clips
from human_eval.study.store import StudyStore, open_study

DATA_SET_FILE = "data_set"  # in the study's folder of a server: where its votes are, too

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a server keeps its study.

    study/      the study
    downloads/  copies of files of the data set
    """

    folder: Path
    kept: bool  # by a restart of the machine

    @property
    def study(self) -> Path:
        """The folder of the study."""
        return self.folder / "study"

    @property
    def downloads(self) -> Path:
        """The folder of downloaded files."""
        return self.folder / "downloads"


class Replica:
    """A server of a published study.

    Args:
        data_set: None without a token: votes stay on this machine.
    """

    def __init__(self, place: Place, data_set: DataSet | None) -> None:
        self.place, self.data_set = place, data_set
        self.status = SyncStatus()
        self._store: StudyStore | None = None
        self._known = Position()  # of the own journal, as far as it is in the data set
        self._round = threading.Lock()

    def open(self) -> StudyStore:
        """Return the study, rebuilt from the data set if necessary, ready for votes.

        Raises:
            StudyNotReady: votes could not be kept, or there is no study; nobody may rate.
        """
        try:
            self._store = self._open()
        except HubProblem as problem:
            raise StudyNotReady(f"This study cannot begin yet. {problem}") from problem
        return self._store

    def _open(self) -> StudyStore:
        there = (self.place.study / "study.db").is_file()
        if self.data_set is None:
            if not (there and self.place.kept):
                raise StudyNotReady(
                    "This study cannot begin yet, because votes would be lost. Its operator has to "
                    "set the secret HF_TOKEN to a token with write access to the data set of "
                    "the study."
                )
            return _as_replica(open_study(self.place.study))
        if there and (store := self._continue(self.data_set)) is not None:
            return store
        return self._rebuild(self.data_set)

    def _continue(self, data_set: DataSet) -> StudyStore | None:
        """Return the study of the last run; None if another version of it was published since."""
        self._store = store = _as_replica(open_study(self.place.study))
        try:
            self.sync()
            if self.status.problem and not self.place.kept:
                raise HubProblem(self.status.problem)
            version = _version(self.place.study)
            if self.status.problem or data_set.read_version(self.place.downloads) == version:
                return store
            if self.status.pending:
                raise HubProblem("A new version was published while votes are being journalled.")
        except StudyError:
            store.close()
            raise
        store.close()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.place.study.rename(self.place.folder / f"study-until-{stamp}")
        return None

    def _rebuild(self, data_set: DataSet) -> StudyStore:
        """Download the study and take in all journals; only a complete study gets its name."""
        data_set.check_private()
        unfinished = self.place.downloads / "study"
        for former in unfinished.glob("study.db*"):  # of a rebuild that was interrupted
            former.unlink()
        data_set.download_study(self.place.downloads)
        if not (unfinished / "study.db").is_file():  # the library returns what it has
            raise HubProblem(f"The study could not be downloaded from {data_set.name}.")
        prepare_snapshot(unfinished)
        store = open_study(unfinished)
        try:
            if lost := find_lost_clips(store):
                raise HubProblem(f"{len(lost)} clips could not be downloaded.")
            with alone(store.database, unfinished):
                self._store = store = _as_replica(store)
                self._exchange(store, data_set, begin=True)
        finally:
            store.close()
        unfinished.rename(self.place.study)
        return _as_replica(open_study(self.place.study))

    def sync(self) -> None:
        """Commit new votes, and take in those of other servers; a failure is kept in `status`."""
        store, data_set = self._store, self.data_set
        assert store is not None, "open() comes first"
        with self._round:
            if data_set is None:
                self._report(store, Position(), "There is no token, so votes stay on this machine.")
                return
            try:
                self._exchange(store, data_set)
            except StudyError as problem:
                logger.warning("Votes are not uploaded yet: %s", problem)
                self._fail(store, str(problem))
            except Exception as error:  # the next round tries again
                logger.exception("Votes are not uploaded yet")
                self._fail(store, f"The upload stopped with an unexpected error: {error!r}.")

    def count(self) -> SyncStatus:
        """Return how many votes there are now, and how many of them are not in the data set."""
        assert self._store is not None, "open() comes first"
        return self._count(self._store)

    def _exchange(self, store: StudyStore, data_set: DataSet, *, begin: bool = False) -> None:
        files = data_set.list_journal()
        with store.read() as connection:
            origin = journal.read_origin(connection)
            known = _last(origin, files)
            end, content = journal.read_news(connection, origin, known)
        if content or begin:
            mine = JournalFile(origin.replica, end)
            data_set.add(mine, content)
            known = end
            (store.folder / DATA_SET_FILE).write_text(f"{data_set.name}\n")
        merge_all(store, files, lambda file: data_set.read(file, self.place.downloads))
        self._report(store, known, "")

    def _report(self, store: StudyStore, known: Position, problem: str) -> None:
        self._known = known
        last = self.status.last if problem else datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.status = replace(self._count(store), last=last, problem=problem)

    def _fail(self, store: StudyStore, problem: str) -> None:
        self.status = replace(self.status, problem=problem)
        with suppress(StudyError):  # the database may be the problem
            self.status = self._count(store)

    def _count(self, store: StudyStore) -> SyncStatus:
        """Return how many votes are stored, and how many of them only here."""
        with store.read() as connection:
            origin = journal.read_origin(connection)
            first = max(self._known.votes, origin.start.votes)
            people = (
                select(func.count())
                .select_from(Vote)
                .join(AssignmentRow, AssignmentRow.id == Vote.assignment_id)
                .where(~AssignmentRow.simulated)
            )
            stored = connection.execute(people).scalar_one()
            pending = connection.execute(people.where(Vote.id > first)).scalar_one()
            for after, up_to in origin.foreign:
                low = max(after.votes, first)
                within = people.where(Vote.id > low, Vote.id <= up_to.votes)
                pending -= connection.execute(within).scalar_one()
        return replace(self.status, stored=stored, pending=pending)


def data_set_of(study: Path) -> str:
    """Return the data set to which a server journals from this folder; "" if there is none."""
    path = study / DATA_SET_FILE
    return path.read_text().strip() if path.is_file() else ""


def merge_all(
    store: StudyStore,
    files: Iterable[JournalFile],
    read: Callable[[JournalFile], bytes],
    *,
    actor: str = "service",
) -> list[journal.Merged]:
    """Take in every file of other servers that is new; return what each added.

    Raises:
        StudyError: a file is damaged or is about another study. The files before it are stored.
    """
    with store.read() as connection:
        origin = journal.read_origin(connection)
    new = [
        file
        for file in sorted(files)
        if file.replica != origin.replica and file.end > origin.merged.get(file.replica, Position())
    ]
    done: list[journal.Merged] = []
    while new:
        waiting: list[JournalFile] = []
        for file in new:
            if any(earlier.replica == file.replica for earlier in waiting):
                waiting.append(file)
                continue
            try:
                content = read(file)
                with store.write() as connection:
                    now = store.clock()
                    done.append(journal.merge(connection, file, content, now=now, actor=actor))
            except MissingRow:
                waiting.append(file)
        if waiting == new:
            logger.warning("%d files of journals wait for other journals.", len(new))
            break
        new = waiting
    return done


def prepare_snapshot(folder: Path) -> None:
    """Prepare a copied database for use by a server."""
    connection = safe_sqlite().connect(str(folder / "study.db"))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    for path in (folder, folder / "media"):
        path.mkdir(exist_ok=True)
        path.chmod(0o700)


def _as_replica(store: StudyStore) -> StudyStore:
    """Return the study as a server of its own: with a journal, and with cookies of its own.

    Raters' cookies hold their number, which differs between databases.
    """
    with store.write() as connection:
        origin = journal.read_origin(connection)
        if not origin.replica:
            origin = journal.start_replica(connection, now=store.clock())
    return replace(store, keys=replace(store.keys, server=origin.replica))


def _last(origin: Origin, files: Iterable[JournalFile]) -> Position:
    """Return how much of this server's journal is in the data set."""
    mine = [file.end for file in files if file.replica == origin.replica]
    return max(mine, default=origin.start)


def _version(study: Path) -> str:
    path = study / "version"
    return path.read_text().strip() if path.is_file() else ""
