"""The private data set of a published study on the Hugging Face Hub.

study/    the study as it was published: a copy of the database, its clips, accounts, version
journal/  what each server adds; files that never change (`journal.py`)

huggingface_hub's CommitScheduler uploads a folder too, but it tells nobody what is not uploaded
yet, and contacts the Hub before the study can start. So this module calls the same upload API. The
library repeats requests that meet 429 or 5xx, but for the commit itself, which could then happen
twice; here the next round lists the files first, and repeats what is missing.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, RepoFile, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from human_eval.errors import StudyError
from human_eval.publishing.journal import FOLDER, JournalFile, parse_path

STUDY = "study"
VERSION = f"{STUDY}/version"  # changes each time the study is published
KIND = "dataset"


class HubProblem(StudyError):
    """The Hub did not answer, or refused. Nothing is lost; the same can be tried again."""


@dataclass(frozen=True)
class DataSet:
    """A data set on the Hub."""

    name: str  # owner/name
    token: str

    def check_private(self) -> None:
        """Refuse a data set that everyone can read.

        Raises:
            HubProblem: it is public, does not exist, or cannot be reached.
        """
        with self._translated():
            info = HfApi(token=self.token).dataset_info(self.name)
        if not info.private:
            raise HubProblem(
                f"The data set {self.name} is public, so nothing is stored in it. Make it private "
                "in its settings."
            )

    def read_version(self, folder: Path) -> str:
        """Return the version of the published study."""
        return self._download(VERSION, folder).read_text().strip()

    def download_study(self, folder: Path) -> None:
        """Download the published study into a folder below this one."""
        with self._translated():
            snapshot_download(
                self.name,
                repo_type=KIND,
                local_dir=folder,
                allow_patterns=f"{STUDY}/*",
                token=self.token,
            )

    def list_journal(self) -> list[JournalFile]:
        """Return the files of all journals, each journal's in order."""
        api = HfApi(token=self.token)
        try:
            with self._translated():
                tree = api.list_repo_tree(self.name, FOLDER, recursive=True, repo_type=KIND)
                paths = [entry.path for entry in tree if isinstance(entry, RepoFile)]
        except _NoEntry:  # nothing was journalled yet
            return []
        return sorted(file for path in paths if (file := parse_path(path)))

    def read(self, file: JournalFile, folder: Path) -> bytes:
        """Return the content of a file of a journal; a folder keeps a copy of it."""
        return self._download(file.path, folder).read_bytes()

    def add(self, file: JournalFile, content: bytes) -> None:
        """Commit a file of a journal: completely or not at all."""
        with self._translated():
            HfApi(token=self.token).upload_file(
                path_or_fileobj=content,
                path_in_repo=file.path,
                repo_id=self.name,
                repo_type=KIND,
                commit_message="Votes",
            )

    def _download(self, path: str, folder: Path) -> Path:
        with self._translated():
            return Path(
                hf_hub_download(self.name, path, repo_type=KIND, local_dir=folder, token=self.token)
            )

    def _translated(self) -> AbstractContextManager[None]:
        return translated_errors(f"The data set {self.name}")


class _NoEntry(HubProblem):
    """The data set has no such file or folder."""


@contextmanager
def translated_errors(subject: str) -> Iterator[None]:
    """Raise `HubProblem` for every way in which the Hub fails."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # how downloads report that the Hub did not answer
        raise HubProblem(f"{subject} could not be reached.") from error
    except EntryNotFoundError as error:
        raise _NoEntry(f"{subject} has no such file. Publish the study again.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "The token is not valid. Set HF_TOKEN to one with write access to it.",
            403: "The token may not do this. Set HF_TOKEN to one with write access to it.",
            404: "It does not exist, or the token may not see it. Publish the study, and set "
            "HF_TOKEN to a token with write access to it.",
            429: "The Hub gets too many requests.",
        }.get(status, "")
        raise HubProblem(f"{subject} replied {status}. {remedy}".strip()) from error
    except (HTTPError, FileMetadataError, ConnectionError, TimeoutError) as error:
        raise HubProblem(f"{subject} could not be reached ({type(error).__name__}).") from error
