"""Signed tokens: what a browser may hold and show again, but can neither make nor change.

They are signed, not encrypted, so they carry numbers that mean nothing without the database.
They carry no time either: when a lease ends is the database's business, on one clock.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from itsdangerous import BadSignature, URLSafeSerializer

from human_eval.errors import NotYours, StudyError

Purpose = Literal["rater", "assignment", "media", "invitation", "link", "clip", "operator"]
MIN_SECRET = 32  # characters
SECRET_VARIABLE = "HUMAN_EVAL_SECRET"


@dataclass(frozen=True)
class Keys:
    """Everything that is signed or hashed with a study's secret."""

    secret: str

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_SECRET:
            raise StudyError(
                f"Expected a secret of at least {MIN_SECRET} characters, got {len(self.secret)}. "
                "Create one with `python -c 'import secrets; print(secrets.token_hex())'`."
            )

    def sign(self, purpose: Purpose, payload: list[Any]) -> str:
        """Return a token; one for another purpose is never accepted in its place."""
        return str(self._signer(purpose).dumps(payload))

    def read(self, purpose: Purpose, token: str) -> list[Any]:
        """Return what was signed.

        Raises:
            NotYours: we did not sign this, or not exactly this.
        """
        signer = self._signer(purpose)
        try:
            payload = signer.loads(token)
        except (BadSignature, UnicodeError) as error:
            raise NotYours(_NOT_OURS) from error
        # The last character of base64 has unused bits: only the one spelling is accepted.
        if not isinstance(payload, list) or signer.dumps(payload) != token:
            raise NotYours(_NOT_OURS)
        return payload

    def pseudonym(self, provider: str, name: str) -> str:
        """Return the name under which the database knows a rater; it cannot be turned back."""
        key = hashlib.sha256(b"pseudonym" + self.secret.encode()).digest()
        message = f"{provider}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.new(key, message, hashlib.sha256).hexdigest()[:20]

    def _signer(self, purpose: Purpose) -> URLSafeSerializer:
        return URLSafeSerializer(
            self.secret,
            salt=f"human_eval.{purpose}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )


def create_secret(path: Path) -> Keys:
    """Write a new secret that only its owner may read."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex())
    return load_secret(path)


def load_secret(path: Path) -> Keys:
    """Read the secret from the environment or from the file.

    Raises:
        StudyError: there is none, or it is too short.
    """
    if value := os.environ.get(SECRET_VARIABLE):
        return Keys(value)
    if not path.is_file():
        raise StudyError(
            f"Expected the study's secret in {path}, got no such file. Copy it from where the "
            f"study was created, or set {SECRET_VARIABLE}."
        )
    return Keys(path.read_text().strip())


_NOT_OURS = "Expected a token of this study, got another one. Reload the page."
