"""Accounts with a password: staff who rate, and researchers who run the study.

They are stored next to the study's secret, never in its definition, database or exports. Passwords
are stored as scrypt hashes.
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
ATTEMPTS, PERIOD = 10, 600.0  # failed sign-ins of one account, within seconds, that block it
NAME = re.compile(r"[\w.@+-]{1,64}")


def add_account(folder: Path, name: str, password: str, role: Role = "rater") -> None:
    """Add an account, or change its password and role.

    Raises:
        StudyError: the name, password or role is not allowed.
    """
    if not NAME.fullmatch(name):
        raise StudyError(
            f"The name {name!r} cannot be used. Use 1 to 64 letters, digits or . @ + - _ instead."
        )
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise StudyError(
            f"The password has {len(password)} characters. Choose one of {MIN_PASSWORD} to "
            f"{MAX_PASSWORD} characters."
        )
    if role not in get_args(Role):
        raise StudyError(f"The role {role!r} does not exist. Use {' or '.join(get_args(Role))}.")
    salt = secrets.token_hex(16)
    accounts = read_accounts(folder)
    accounts[name] = {"role": role, "salt": salt, "hash": _hash(password, salt)}
    unfinished = _path(folder).with_suffix(f".{os.getpid()}")
    handle = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(accounts, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(_path(folder))


def read_accounts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the accounts by name."""
    path = _path(folder)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class Authenticator:
    """Checks passwords, and blocks an account for a while after many failures."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock  # seconds
        self._failures: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=ATTEMPTS))

    def check(self, name: str, password: str, role: Role | None = None) -> None:
        """Check that the password and, if one is given, the role are the account's.

        Takes about 50 ms of computation, to slow down guessing.

        Raises:
            NotYours: name, password or role is wrong, or the account is blocked.
        """
        wrong = NotYours("The name or the password is wrong. Try again.")
        account = read_accounts(self._folder).get(name)
        if account is None:
            _hash(password[:MAX_PASSWORD], "unknown")  # takes as long as for an existing account
            raise wrong
        failures, now = self._failures[name], self._clock()
        if len(failures) == ATTEMPTS and now - failures[0] < PERIOD:
            raise NotYours("Too many failed sign-ins. Try again in ten minutes.")
        given = _hash(password[:MAX_PASSWORD], account["salt"])
        if not hmac.compare_digest(given, account["hash"]) or role not in (None, account["role"]):
            failures.append(now)
            raise wrong
        failures.clear()


def _path(folder: Path) -> Path:
    return folder / "staff.json"


def _hash(password: str, salt: str) -> str:
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt.encode(), n=2**14, r=8, p=1).hex()
