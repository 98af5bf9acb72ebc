"""Download the published files of a model into the Hugging Face cache, and convert them.

An interrupted download (lost connection, closed program) continues where it stopped.
`hf_hub_download` cannot do that: since huggingface_hub 1.0 it downloads to a temporary file of its
own and deletes it on failure. `HfFileSystem` reads a remote file from any byte on, with retries.

torch is imported only for the conversion.
"""

import hashlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from filelock import FileLock
from huggingface_hub import (
    HfFileSystem,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from turbo.card import HubFile, ModelCard, describe_remedy, needs_choice
from turbo.disk_space import LOCK_SECONDS, check_space, nearest_existing
from turbo.models.registry import check_home

CHUNK = 4 * 2**20  # bytes between two progress reports
SHA256_DIGITS = 64

PROXIES = ("all_proxy", "http_proxy", "https_proxy")  # variables, in lower case


@dataclass(frozen=True)
class FetchProgress:
    """Progress of one stage of a fetch."""

    stage: Literal["download", "check", "convert"]
    done: int  # bytes
    total: int  # bytes in this stage


@dataclass(frozen=True)
class _Download:
    """A file that is not in the cache, with its size and hash as reported by the Hub."""

    file: HubFile
    size: int  # bytes
    etag: str  # SHA-256 of a file in large-file storage

    @property
    def blob(self) -> Path:
        """Return the path of the finished file: the Hugging Face cache names files by etag."""
        folder = repo_folder_name(repo_id=self.file.repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / folder / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """Return the path of the unfinished file."""
        return self.blob.with_name(f"{self.etag}.partial")

    @property
    def remaining(self) -> int:
        """Return the number of bytes still to download."""
        return self.size - (self.partial.stat().st_size if self.partial.exists() else 0)


def fetch_model(card: ModelCard, *, projection: str | None = None) -> Iterator[FetchProgress]:
    """Download the missing files of a model, check them, and convert them.

    Closing the iterator stops the fetch; the next one continues the download.

    Args:
        projection: guidance projection for published adapters; see `convert.adapters`.

    Raises:
        ValueError: there is nothing to fetch, a choice is missing, or a file is not the published
            one. The message can be shown on a page.
        ConnectionError: the Hub is unreachable or refuses the file.
        OSError: the disk is full.
    """
    check_request(card, projection)
    missing = set(card.missing)  # partly missing outputs are counted during conversion
    written = sum(file.size for file in card.needed if missing.issuperset(file.gives))
    paths = yield from download_files(card.needed, folder=card.folder, written=written)
    from turbo.convert.model import convert_model  # imports torch: seconds

    for done, total in convert_model(card, paths, projection=projection):
        yield FetchProgress("convert", done, total)


def check_request(card: ModelCard, projection: str | None = None) -> None:
    """Check before the download that it would complete the model.

    Raises:
        ValueError: as for `fetch_model`.
    """
    if card.is_ready():
        raise ValueError(
            f"{card.name} is already in {card.folder}. To replace damaged weights, delete the "
            "folder that `verify` names and fetch again."
        )
    if card.unpublished:
        raise ValueError(
            f"{card.name} cannot be fetched: its {card.unpublished[0]!r} was never published. "
            f"{describe_remedy(card)}"
        )
    check_home(card.folder)
    check_proxies()
    if projection is not None:
        if not any(card.lora in file.gives for file in card.sources):
            raise ValueError(
                f"--projection {projection!r} does not apply to {card.name}, which has no "
                "published adapters. Leave --projection out."
            )
        from turbo.convert.adapters import check_projection

        check_projection(projection)
    elif needs_choice(card):
        from turbo.convert.adapters import PROJECTION_REQUIRED

        raise ValueError(f"{card.name} needs a guidance projection. {PROJECTION_REQUIRED}")


def check_proxies() -> None:
    """Check that downloads can use the proxies of the environment.

    Raises:
        ValueError: one cannot be used. The message does not contain its password.
    """
    for name, value in os.environ.items():
        if name.lower() not in PROXIES or not value.strip():
            continue
        proxy = value if "://" in value else f"http://{value}"
        try:
            httpx.Client(proxy=proxy, trust_env=False).close()
        except ImportError as error:
            raise ValueError(
                f"{name} names a SOCKS proxy. Install its support with "
                "python -m pip install 'httpx[socks]', name an http:// proxy, or unset it."
            ) from error
        except (ValueError, httpx.InvalidURL) as error:
            raise ValueError(
                f"{name} is not the address of a proxy that downloads can use. Write it as "
                "http://HOST:PORT or socks5://HOST:PORT, or unset it."
            ) from error
    try:
        httpx.Client().close()
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError(
            "NO_PROXY (no_proxy) has an entry that downloads cannot use. Write host names and "
            "addresses, separated by commas, or unset it."
        ) from error


def download_files(
    files: list[HubFile], *, folder: Path | None = None, written: int = 0
) -> Generator[FetchProgress, None, list[Path]]:
    """Download files into the Hugging Face cache, except those already there; return their paths.

    Args:
        folder: where the files are converted afterwards; its disk must have room as well.
        written: bytes that the conversion will write.
    """
    cached = {file: find_cached(file) for file in files}
    # Look up every file before downloading the first gigabyte.
    downloads = [_look_up(file) for file, path in cached.items() if path is None]
    remaining = sum(download.remaining for download in downloads)
    cache = Path(constants.HF_HUB_CACHE)
    check_space(cache, remaining)
    if folder is not None:
        check_space(folder, written + (remaining if _disk_of(folder) == _disk_of(cache) else 0))
    for file, path in cached.items():
        if path is not None and file.sha256 is not None:
            yield from _check_cached(file, path)
    done, total = 0, sum(download.size for download in downloads)
    for download in downloads:
        with _locked(download):
            if not download.blob.exists():  # else another process completed it while this waited
                for size in _download(download):
                    yield FetchProgress("download", done + size, total)
                yield from _check(download)
        done += download.size
        # The blob is in place, so this only adds the link that makes it part of the cache.
        cached[download.file] = Path(hf_hub_download(download.file.repository, download.file.path))
    return [path for path in cached.values() if path]


def _disk_of(folder: Path) -> int:
    return nearest_existing(folder).stat().st_dev


def find_cached(file: HubFile) -> Path | None:
    """Return the path of a file in the Hugging Face cache, or None. Makes no request."""
    path = try_to_load_from_cache(file.repository, file.path)
    return Path(path) if isinstance(path, str) else None


def _look_up(file: HubFile) -> _Download:
    """Ask the Hub for the size and hash of a file."""
    try:
        metadata = get_hf_file_metadata(hf_hub_url(file.repository, file.path))
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{file.path} of {file.repository} is not in the cache, and HF_HUB_OFFLINE forbids "
            "downloads. Unset it, or convert a file that you have."
        ) from error
    except GatedRepoError as error:
        raise ConnectionError(
            f"{file.repository} denied access. Accept its terms at {file.address} and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise ConnectionError(
            f"{file.path} was not found in {file.repository}. It may have moved, or need HF_TOKEN: "
            f"see {file.address}"
        ) from error
    except HTTPError as error:
        raise ConnectionError(_unreachable(file, error)) from error
    if metadata.size is None or metadata.etag is None:
        raise ConnectionError(
            f"The Hub did not report the size and hash of {file.address}. Try again later."
        )
    if file.sha256 and len(metadata.etag) == SHA256_DIGITS and metadata.etag != file.sha256:
        raise ValueError(
            f"{file.path} in {file.repository} has changed since its model card was written: its "
            f"SHA-256 is {metadata.etag}, not {file.sha256}. Look at {file.address}; if you trust "
            "the new file, download it yourself and convert it."
        )
    return _Download(file, metadata.size, metadata.etag)


def _locked(download: _Download) -> FileLock:
    """Return the lock for a file, from its first byte until it is in its place."""
    partial = download.partial
    partial.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(
        partial.with_suffix(".lock"), timeout=LOCK_SECONDS, thread_local=False
    )  # see convert_model


def _download(download: _Download) -> Iterator[int]:
    """Complete the partial file; yield how many of its bytes are on the disk."""
    file, partial = download.file, download.partial
    with partial.open("ab") as target:
        if not download.remaining:
            return
        try:
            # block_size=0 streams over one connection.
            with HfFileSystem().open(f"{file.repository}/{file.path}", block_size=0) as source:
                source.loc = target.tell()  # the stream has no seek; it starts at this byte
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield target.tell()
        except HTTPError as error:
            raise ConnectionError(_unreachable(file, error)) from error


def _check(download: _Download) -> Iterator[FetchProgress]:
    """Compare a download with its hash, and move it to its place in the Hugging Face cache."""
    wanted = download.file.sha256 or download.etag  # small files have no SHA-256 on the Hub
    if len(wanted) == SHA256_DIGITS:
        found = yield from _digest(download.partial)
        if found != wanted:
            download.partial.unlink()
            raise ValueError(
                f"The download of {download.file.path} from {download.file.repository} was damaged "
                f"and has been removed: its SHA-256 is {found}, not {wanted}. "
                "Fetch it again."
            )
    os.replace(download.partial, download.blob)


def _check_cached(file: HubFile, path: Path) -> Iterator[FetchProgress]:
    """Compare a file in the cache with the hash on its card."""
    found = yield from _digest(path)
    if found != file.sha256:
        raise ValueError(
            f"The cached copy of {file.path} from {file.repository} is damaged or another version: "
            f"its SHA-256 is {found}, not {file.sha256}. Remove it from the Hugging Face cache "
            "(HF_HOME) and fetch it again."
        )


def _digest(path: Path) -> Generator[FetchProgress, None, str]:
    """Return the SHA-256 of a file in hexadecimal; yield progress every few megabytes."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            yield FetchProgress("check", content.tell(), size)
    return digest.hexdigest()


def _unreachable(file: HubFile, error: Exception) -> str:
    proxies = [name for name in os.environ if name.lower() in PROXIES and os.environ[name]]
    hint = f", and the proxy that {' and '.join(proxies)} names," if proxies else ""
    return (
        f"Downloading {file.path} from {file.repository} failed ({error}). Check the connection"
        f"{hint} and try again: the download continues where it stopped."
    )
