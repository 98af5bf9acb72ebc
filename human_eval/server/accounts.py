"""Accounts of people we know: raters who log in, and those who may run the study.

They lie beside the study's secret, never in its definition, its database or an export. Passwords
are kept as scrypt hashes.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from human_eval.errors import NotYours, StudyError

Role = Literal["rater", "admin"]
MIN_PASSWORD = 10  # characters
MAX_PASSWORD = 200
ATTEMPTS, PERIOD = 10, 600.0  # failures of one name within so many seconds close its door
NAME = re.compile(r"[\w.@+-]{1,64}")


def add_account(folder: Path, name: str, password: str, role: Role = "rater") -> None:
    """Add an account, or change its password and role.

    Raises:
        StudyError: the name or the password will not do.
    """
    if not NAME.fullmatch(name):
        raise StudyError(
            f"Expected a name of letters, digits and . @ + - _, got {name!r}. Choose another."
        )
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise StudyError(
            f"Expected a password of {MIN_PASSWORD} to {MAX_PASSWORD} characters, got "
            f"{len(password)}. Choose another."
        )
    if role not in get_args(Role):
        raise StudyError(f"Expected a role from {list(get_args(Role))}, got {role!r}. Choose one.")
    salt = secrets.token_hex(16)
    accounts = read_accounts(folder)
    accounts[name] = {"role": role, "salt": salt, "hash": _scramble(password, salt)}
    unfinished = _path(folder).with_suffix(f".{os.getpid()}")
    handle = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(accounts, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(_path(folder))


def read_accounts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the accounts by name; none where nobody has been added."""
    path = _path(folder)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class Door:
    """Lets people in who know their password, and nobody who tries many."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock  # seconds
        self._failures: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=ATTEMPTS))

    def admit(self, name: str, password: str, role: Role | None = None) -> None:
        """Return if the name and password are those of an account, of that role if one is given.

        Takes some 50 ms of computation, on purpose.

        Raises:
            NotYours: they are not, or the name has failed too often of late.
        """
        wrong = NotYours("Expected a name and its password, got others. Try again.")
        account = read_accounts(self._folder).get(name)
        if account is None:
            _scramble(password[:MAX_PASSWORD], "nobody")  # takes as long as for somebody
            raise wrong
        failures, now = self._failures[name], self._clock()
        if len(failures) == ATTEMPTS and now - failures[0] < PERIOD:
            raise NotYours("Expected fewer wrong passwords, got many. Wait ten minutes.")
        given = _scramble(password[:MAX_PASSWORD], account["salt"])
        if not hmac.compare_digest(given, account["hash"]) or role not in (None, account["role"]):
            failures.append(now)
            raise wrong
        failures.clear()


def _path(folder: Path) -> Path:
    return folder / "staff.json"


def _scramble(password: str, salt: str) -> str:
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt.encode(), n=2**14, r=8, p=1).hex()
