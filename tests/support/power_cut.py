"""A disk that can lose its power: SQLite under a VFS that knows which writes were not synced yet.

`connect` is a DB-API module's, over apsw, for SQLAlchemy to use in place of pysqlite3. A cut copies
the files as they lie, with the un-synced writes undone, all or some of them.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
from pysqlite3 import dbapi2


class Disk:
    """Remembers, per file, what its un-synced writes overwrote."""

    def __init__(self, folder: Path, rng: random.Random, chance: float) -> None:
        self.folder = folder
        self.rng = rng
        self.chance = chance  # of a cut at a write
        self.unsynced: dict[Path, list[tuple[int, bytes, int]]] = {}
        self.acknowledged: list[Any] = []
        self.cuts: list[tuple[Path, list[Any]]] = []

    def before_write(self, path: Path, offset: int, length: int) -> None:
        if self.rng.random() < self.chance:
            self.cut()
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(offset)
            old = file.read(length)
        self.unsynced.setdefault(path, []).append((offset, old, size))

    def cut(self) -> None:
        """Keep the files as they would be found, and what had been promised by then."""
        target = self.folder / f"cut{len(self.cuts)}"
        target.mkdir()
        lose_all = self.rng.random() < 0.5
        for path in self.unsynced:
            if path.name.endswith("-shm") or not path.exists():
                continue
            content = bytearray(path.read_bytes())
            for offset, old, size in reversed(self.unsynced[path]):
                if lose_all or self.rng.random() < 0.5:
                    content[offset : offset + len(old)] = old
                    if lose_all:
                        del content[size:]
            (target / path.name).write_bytes(content)
        self.cuts.append((target, list(self.acknowledged)))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, base: str, name: Any, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        path = name if isinstance(name, str) else name.filename()
        self.disk, self.path = disk, Path(path)
        disk.unsynced.setdefault(self.path, [])

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.before_write(self.path, offset, len(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        current = self.path.stat().st_size
        if size < current:
            self.disk.before_write(self.path, size, current - size)
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self.disk.unsynced[self.path].clear()


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__("power-cut", "unix")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        if name is None:
            return super().xOpen(name, flags)
        return _File(self.disk, "unix", name, flags)


@contextmanager
def driver(disk: Disk, synchronous: str) -> Iterator[Any]:
    """Return a module for `create_engine(module=...)` whose connections write to the disk."""
    vfs = _Vfs(disk)
    module = SimpleNamespace(
        **{name: getattr(dbapi2, name) for name in dir(dbapi2) if not name.startswith("_")}
    )
    module.connect = lambda name, **_: _Connection(name, synchronous)
    try:
        yield module
    finally:
        vfs.unregister()


class _Connection:
    def __init__(self, name: str, synchronous: str) -> None:
        self._connection = apsw.Connection(
            f"{name}&vfs=power-cut",
            flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI,
        )
        self._synchronous = synchronous
        self.isolation_level = None

    def execute(self, statement: str) -> None:
        if "synchronous" in statement:
            statement = f"PRAGMA synchronous={self._synchronous}"
        self._connection.execute(statement)

    def cursor(self) -> "_Cursor":
        return _Cursor(self._connection)

    def create_function(self, *arguments: Any, **options: Any) -> None:
        """SQLAlchemy adds a function for regular expressions; nothing here uses it."""

    def commit(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


class _Cursor:
    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid = 0
        self.arraysize = 1

    def execute(self, statement: str, parameters: Any = ()) -> "_Cursor":
        before = self._connection.total_changes()
        cursor = self._connection.cursor()
        columns: list[Any] = []
        cursor.exec_trace = lambda found, sql, bound: columns.append(found.description) or True
        self._rows = list(cursor.execute(statement, tuple(parameters)))
        self.description = columns[-1] or None if columns else None
        self.rowcount = self._connection.total_changes() - before
        self.lastrowid = self._connection.last_insert_rowid()
        return self

    def executemany(self, statement: str, rows: Sequence[Any]) -> "_Cursor":
        for row in rows:
            self.execute(statement, row)
        return self

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    def fetchmany(self, size: int = 1) -> list[Any]:
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    def close(self) -> None:
        self._rows = []
