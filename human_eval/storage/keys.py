"""Signed tokens, which a browser keeps and sends back but can neither make nor change.

Tokens are signed, not encrypted, so they only carry numbers that mean nothing without the database.
They carry no expiry: an assignment expires by the clock of the database.
"""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from itsdangerous import BadSignature, URLSafeSerializer

from human_eval.errors import NotYours, StudyError
from human_eval.storage.private_file import create_private

Purpose = Literal["rater", "assignment", "media", "invitation", "link", "clip", "operator"]
MIN_SECRET = 32  # characters
SECRET_VARIABLE = "HUMAN_EVAL_SECRET"


@dataclass(frozen=True)
class Keys:
    """Signs and hashes with a study's secret.

    Links and invitations hold on every server of a study. Other tokens hold numbers of rows, which
    mean nothing in the database of another server.
    """

    secret: str
    server: str = ""  # of several with databases of their own, which this is

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_SECRET:
            raise StudyError(
                f"The secret has {len(self.secret)} characters; it needs {MIN_SECRET} or more. "
                "Create one with `python -c 'import secrets; print(secrets.token_hex())'`."
            )

    def sign(self, purpose: Purpose, payload: list[Any]) -> str:
        """Return a token that is valid for this purpose only."""
        return str(self._signer(purpose).dumps(payload))

    def read(self, purpose: Purpose, token: str) -> list[Any]:
        """Return the payload of a token.

        Raises:
            NotYours: the signature is not valid for this purpose.
        """
        signer = self._signer(purpose)
        with suppress(BadSignature, UnicodeError):
            payload = signer.loads(token)
            # Base64's last character has unused bits. Accept only the spelling that was signed.
            if isinstance(payload, list) and signer.dumps(payload) == token:
                return payload
        raise NotYours(BROKEN_LINK if purpose in ("link", "invitation") else _INVALID)

    def pseudonym(self, provider: str, name: str) -> str:
        """Return the name of a rater in the database: a keyed hash, which cannot be reversed."""
        key = hashlib.sha256(b"pseudonym" + self.secret.encode()).digest()
        message = f"{provider}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.new(key, message, hashlib.sha256).hexdigest()[:20]

    def _signer(self, purpose: Purpose) -> URLSafeSerializer:
        server = "" if purpose in ("link", "invitation") else self.server
        return URLSafeSerializer(
            self.secret,
            salt=f"human_eval.{purpose}{server}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )


def create_secret(path: Path) -> Keys:
    """Create a secret in a file that only its owner can read."""
    create_private(path, secrets.token_hex())
    return load_secret(path)


def load_secret(path: Path) -> Keys:
    """Read the secret from the environment or from the file.

    Raises:
        StudyError: there is no secret, or it is too short.
    """
    if value := os.environ.get(SECRET_VARIABLE):
        return Keys(value)
    if not path.is_file():
        raise StudyError(
            f"The study's secret {path} does not exist. Copy it from where the study was created, "
            f"or set {SECRET_VARIABLE}."
        )
    return Keys(path.read_text().strip())


_INVALID = "This page is not valid for this study. Reload the page."
BROKEN_LINK = (
    "This link is incomplete, or it belongs to another study. Open the whole link that you were "
    "given, from its first to its last character."
)
