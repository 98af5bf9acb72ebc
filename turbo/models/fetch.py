"""Download the published files of a model into the Hub's cache, and convert them.

A download that was cut off, by a lost connection or by a closed program, goes on where it ended.
Free of torch until there is something to convert.
"""

import hashlib
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
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
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status

from turbo.card import HubFile, ModelCard, describe_remedy, needs_choice
from turbo.disk_space import check_space, nearest_existing

CHUNK = 4 * 2**20  # bytes between two reports
ATTEMPTS = 5  # without a new byte, before giving up
SHA256_DIGITS = 64


@dataclass(frozen=True)
class FetchProgress:
    """Where a fetch stands."""

    stage: Literal["download", "check", "convert"]
    done: int  # bytes
    total: int  # bytes of this stage


def fetch_model(card: ModelCard, *, projection: str | None = None) -> Iterator[FetchProgress]:
    """Download what a model lacks, check it, and convert it. Close the iterator to stop.

    Args:
        projection: which guidance projection published adapters get; see `convert.adapters`.

    Raises:
        ValueError: there is nothing to fetch, a choice is missing, or a file is not the published
            one; each with a text fit for a page.
        ConnectionError: the Hub cannot be reached, or does not give the file.
        OSError: the disk is full.
    """
    check_request(card, projection)
    missing = set(card.missing)  # of what is there in part, the conversion will tell
    written = sum(file.size for file in card.needed if missing.issuperset(file.gives))
    paths = yield from download_files(card.needed, folder=card.folder, written=written)
    from turbo.convert.model import convert_model  # brings torch: seconds

    for done, total in convert_model(card, paths, projection=projection):
        yield FetchProgress("convert", done, total)


def check_request(card: ModelCard, projection: str | None = None) -> None:
    """Refuse what a download could not make whole, before it begins.

    Raises:
        ValueError: as for `fetch_model`.
    """
    if card.is_ready():
        raise ValueError(
            f"Expected a model to fetch, got {card.name}, which is ready in {card.folder}. Where "
            "it is damaged, delete the folder that `verify` names, and fetch again."
        )
    if card.unpublished:
        raise ValueError(
            f"Expected a published model, got {card.name}, whose {card.unpublished[0]!r} nobody "
            f"published. {describe_remedy(card)}"
        )
    if projection is not None:
        if not any(card.lora in file.gives for file in card.sources):
            raise ValueError(
                f"Expected no --projection for {card.name}, which fetches no adapters, got "
                f"{projection!r}. Leave --projection out."
            )
        from turbo.convert.adapters import check_projection

        check_projection(projection)
    elif needs_choice(card):
        from turbo.convert.adapters import THE_TRAP

        raise ValueError(f"Expected a guidance projection for {card.name}, got none. {THE_TRAP}")


def download_files(
    files: list[HubFile], *, folder: Path | None = None, written: int = 0
) -> Generator[FetchProgress, None, list[Path]]:
    """Download files into the Hub's cache, unless they are there, and return their paths.

    Args:
        folder: where they are converted afterwards, for which there must be room as well.
        written: bytes that will be there then.
    """
    cached = {file: find_cached(file) for file in files}
    absent = [file for file, path in cached.items() if path is None]
    offered = {file: _look_up(file) for file in absent}  # all of them, before the first gigabyte
    total = sum(metadata.size or 0 for metadata in offered.values())
    loaded = total - sum(map(_part_there, absent, offered.values()))
    cache = Path(constants.HF_HUB_CACHE)
    check_space(cache, loaded)
    if folder is not None:
        check_space(folder, written + (loaded if _disk_of(folder) == _disk_of(cache) else 0))
    for file, path in cached.items():
        if path is not None and file.sha256 is not None:
            yield from _check_cached(file, path)
    done = 0
    for file, metadata in offered.items():
        for size in _download(file, metadata):
            yield FetchProgress("download", done + size, total)
        done += metadata.size or 0
        yield from _check(file, metadata)
        cached[file] = Path(hf_hub_download(file.repository, file.path))
    return [path for path in cached.values() if path]


def _disk_of(folder: Path) -> int:
    return nearest_existing(folder).stat().st_dev


def find_cached(file: HubFile) -> Path | None:
    """Return where a file is in the Hub's cache, or None; asks nobody."""
    path = try_to_load_from_cache(file.repository, file.path)
    return Path(path) if isinstance(path, str) else None


def _look_up(file: HubFile) -> HfFileMetadata:
    """Ask the Hub for size and hash of a file."""
    try:
        metadata = get_hf_file_metadata(hf_hub_url(file.repository, file.path))
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"Expected {file.path} of {file.repository} in the cache, for HF_HUB_OFFLINE is set; "
            "got none. Unset it, or convert a file you have."
        ) from error
    except GatedRepoError as error:
        raise ConnectionError(
            f"Expected access to {file.repository}, got a refusal. Accept its terms at "
            f"{file.address} and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise ConnectionError(
            f"Expected {file.path} in {file.repository}, got none. It may have moved, or need "
            f"HF_TOKEN: look at {file.address}"
        ) from error
    except HTTPError as error:
        raise ConnectionError(_unreachable(file, error)) from error
    if metadata.size is None or metadata.etag is None:
        raise ConnectionError(
            f"Expected size and hash of {file.address}, got none. Try again later."
        )
    if file.sha256 and metadata.etag != file.sha256:
        raise ValueError(
            f"Expected SHA-256 {file.sha256} of {file.path} in {file.repository}, got "
            f"{metadata.etag}: the file was replaced since its card was written. Look at "
            f"{file.address}, download it yourself if you trust it, and convert it."
        )
    return metadata


def _download(file: HubFile, metadata: HfFileMetadata) -> Iterator[int]:
    """Write the file beside its place in the cache; yield how many bytes are there."""
    partial = _partial(file, metadata)
    partial.parent.mkdir(parents=True, exist_ok=True)
    attempts = ATTEMPTS
    with WeakFileLock(partial.with_suffix(".lock")), partial.open("ab") as target:
        while target.tell() < (metadata.size or 0):
            before = target.tell()
            try:
                for chunk in _request(file, before):
                    target.write(chunk)
                    yield target.tell()
            except HTTPError as error:
                attempts = ATTEMPTS if target.tell() > before else attempts - 1
                if not attempts:
                    raise ConnectionError(_unreachable(file, error)) from error
                time.sleep(1)


def _request(file: HubFile, begin: int) -> Iterator[bytes]:
    """Yield the bytes of a file from one of them on."""
    headers = build_hf_headers() | {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    url = hf_hub_url(file.repository, file.path)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if begin and response.status_code != 206:
            raise ConnectionError(
                f"Expected {file.address} from byte {begin} on, got it from the first. "
                "Remove the unfinished download and try again."
            )
        yield from response.iter_bytes(CHUNK)


def _check(file: HubFile, metadata: HfFileMetadata) -> Iterator[FetchProgress]:
    """Compare a download with its hash, and put it where the Hub's cache expects it."""
    partial, etag = _partial(file, metadata), str(metadata.etag)
    if len(etag) == SHA256_DIGITS:
        found = yield from _digest(partial)
        if found != etag:
            partial.unlink()
            raise ValueError(
                f"Expected SHA-256 {etag} of {file.path} from {file.repository}, "
                f"got {found}; the download was removed. Fetch it again."
            )
    os.replace(partial, partial.with_name(etag))


def _check_cached(file: HubFile, path: Path) -> Iterator[FetchProgress]:
    """Compare what the cache holds with the hash on the card."""
    found = yield from _digest(path)
    if found != file.sha256:
        raise ValueError(
            f"Expected SHA-256 {file.sha256} of {file.path} from {file.repository}, got {found} "
            "in the cache: damaged, or another version. Remove it from the Hub's cache (HF_HOME) "
            "and fetch it again."
        )


def _digest(path: Path) -> Generator[FetchProgress, None, str]:
    """Read a file, telling every few megabytes, and return its SHA-256 in hexadecimal."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            yield FetchProgress("check", content.tell(), size)
    return digest.hexdigest()


def _part_there(file: HubFile, metadata: HfFileMetadata) -> int:
    partial = _partial(file, metadata)
    return partial.stat().st_size if partial.exists() else 0


def _partial(file: HubFile, metadata: HfFileMetadata) -> Path:
    """Return where a download grows; its finished name is its hash, as the Hub's cache has it."""
    folder = repo_folder_name(repo_id=file.repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / f"{metadata.etag}.partial"


def _unreachable(file: HubFile, error: Exception) -> str:
    return (
        f"Expected {file.path} from {file.repository}, got no answer ({error}). "
        "Check the connection and run it again: it goes on where it ended."
    )
