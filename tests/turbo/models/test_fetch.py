"""Downloads from a local hub: progress, resuming, errors, and the conversion that follows."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfFileSystem, constants

from tests.support import published
from turbo.card import HubFile
from turbo.convert.unet import videocrafter_part
from turbo.models import cli, fetch
from turbo.models.cli import main
from turbo.models.fetch import FetchProgress, download_files, fetch_model
from turbo.models.registry import CARDS
from turbo.rewards.__main__ import main as fetch_reward
from turbo.rewards.checkpoints import RewardCard
from turbo.rewards.published import REWARDS

REPOSITORY = "someone/something"


@dataclass
class Hub:
    """A local hub: the files it offers, how it misbehaves, and the requests it received."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of an answer, once
    damages: bool = False  # sends other bytes than its hash says
    denies: str | None = None  # error code of the Hub
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # method, range
    tokens: list[str | None] = field(default_factory=list)

    def offer(self, path: str, content: bytes, **changes) -> HubFile:
        self.files[path] = content
        file = HubFile(repository=REPOSITORY, path=path, size=len(content), gives=("teacher",))
        return replace(file, **changes)

    def sizes_asked(self) -> list[str | None]:
        return [range for method, range in self.asked if method == "GET"]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: Hub = self.server.hub
        if self.path.startswith("/api/models/"):  # the repository, or a list of its files
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": "0"}
                for path, content in hub.files.items()
            ]
            body = json.dumps(tree if "/tree/" in self.path else {"id": REPOSITORY}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        hub.asked.append((self.command, self.headers["Range"]))
        hub.tokens.append(self.headers["Authorization"])
        path = self.path.partition("/resolve/main/")[2]
        content = hub.files.get(path)
        if content is None or hub.denies:
            self.send_response(403 if hub.denies == "GatedRepo" else 404)
            self.send_header("X-Error-Code", hub.denies or "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if hub.damages and self.command == "GET":
            content = bytes(reversed(content))
        begin = int(re.findall(r"\d+", self.headers["Range"] or "0")[0])
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("ETag", f'"{hashlib.sha256(hub.files[path]).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            end = None if hub.cut_after is None else begin + hub.cut_after
            self.wfile.write(content[begin:end])
            self.close_connection = hub.cut_after is not None
            hub.cut_after = None


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """Start a local hub, point huggingface_hub to it, and use an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.hub = Hub()
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    HfFileSystem.clear_instance_cache()  # instances keep the endpoint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "CHUNK", 1000)
    yield server.hub
    server.shutdown()
    server.server_close()


def run(files: list[HubFile]) -> tuple[list[FetchProgress], list]:
    """Return all progress reports, and the paths."""
    reports, steps = [], download_files(files)
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            return reports, end.value


def test_a_download_reports_its_bytes_and_ends_in_the_cache(hub):
    content = bytes(range(256)) * 20

    reports, [path] = run([hub.offer("model.ckpt", content)])

    assert path.read_bytes() == content
    loaded = [report.done for report in reports if report.stage == "download"]
    assert loaded == sorted(loaded) and loaded[0] < loaded[-1] == len(content)
    assert {report.total for report in reports} == {len(content)}
    assert reports[-1] == FetchProgress("check", len(content), len(content))


@pytest.mark.parametrize("stage", ["download", "check"])
def test_of_two_fetches_at_once_the_second_waits_and_takes_the_file_of_the_first(hub, stage):
    content = bytes(range(256)) * 20
    file = hub.offer("model.ckpt", content)
    first = download_files([file])
    assert any(report.stage == stage for report in first)  # it is in the midst of this stage

    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(run, [file])
        with suppress(TimeoutError):
            second.exception(timeout=1)
        list(first)

        reports, [path] = second.result(timeout=60)

    assert reports == []
    assert path.read_bytes() == content
    assert len(hub.sizes_asked()) == 1


def test_what_is_in_the_cache_is_not_asked_for_again(hub):
    file = hub.offer("model.ckpt", b"weights")
    run([file])
    hub.asked.clear()

    reports, [path] = run([file])

    assert path.read_bytes() == b"weights"
    assert not reports and not hub.asked


def test_what_is_in_the_cache_is_held_against_the_card(hub):
    content = bytes(range(256)) * 20
    file = hub.offer("model.ckpt", content, sha256=hashlib.sha256(content).hexdigest())
    _, [path] = run([file])
    path.resolve().write_bytes(content[:-1] + b"?")

    with pytest.raises(
        ValueError, match=f"SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}"
    ):
        run([file])


def test_a_download_that_fails_names_the_variable_of_its_proxy(hub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")

    message = fetch._unreachable(hub.offer("model.ckpt", b""), OSError("refused"))

    assert "HTTP_PROXY" in message and "secret" not in message


def test_a_lost_connection_goes_on_where_it_ended(hub):
    content = bytes(range(256)) * 40
    hub.cut_after = 3000

    _, [path] = run([hub.offer("model.ckpt", content)])

    assert path.read_bytes() == content
    first, second = hub.sizes_asked()
    assert (first, second) == (None, "bytes=3000-")


def test_a_closed_program_goes_on_where_it_ended(hub):
    content = bytes(range(256)) * 40
    file = hub.offer("model.ckpt", content)
    steps = download_files([file])
    with ThreadPoolExecutor() as pool:  # as in a page, where every step may have another thread
        stopped = pool.submit(next, steps).result().done
        steps.close()

    _, [path] = run([file])

    assert path.read_bytes() == content
    assert hub.sizes_asked()[-1] == f"bytes={stopped}-"


def test_a_hub_that_never_answers_is_given_up(hub, monkeypatch):
    file = hub.offer("model.ckpt", b"weights")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{filename}")

    with pytest.raises(
        ConnectionError, match="Downloading model.ckpt from someone/something failed"
    ):
        run([file])


def test_a_download_with_another_hash_is_removed(hub):
    file = hub.offer("model.ckpt", b"weights")
    hub.damages = True

    with pytest.raises(ValueError, match="damaged and has been removed: its SHA-256 is"):
        run([file])

    assert fetch.find_cached(file) is None
    hub.damages = False
    _, [path] = run([file])
    assert path.read_bytes() == b"weights"


def test_a_file_that_was_replaced_since_is_refused_before_it_is_loaded(hub):
    file = hub.offer("model.ckpt", b"weights", sha256="0" * 64)

    with pytest.raises(
        ValueError, match="model.ckpt .* has changed since its model card was written"
    ):
        run([file])

    assert not hub.sizes_asked()


@pytest.mark.parametrize(
    "word, message",
    [
        ("GatedRepo", "Accept its terms at https://.* and set HF_TOKEN"),
        ("RepoNotFound", "It may have moved, or need HF_TOKEN: see https://"),
        ("EntryNotFound", "It may have moved, or need HF_TOKEN: see https://"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(word, message, hub):
    file = hub.offer("model.ckpt", b"weights")
    hub.denies = word

    with pytest.raises(ConnectionError, match=message):
        run([file])


def test_the_token_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    run([hub.offer("model.ckpt", b"weights")])

    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_a_full_disk_is_noticed_before_the_download(hub, monkeypatch):
    file = hub.offer("model.ckpt", bytes(3_000_000))
    monkeypatch.setattr(
        "turbo.disk_space.shutil.disk_usage", lambda _: type("Disk", (), {"free": 10})
    )

    with pytest.raises(OSError, match="0.0 GB.*Make room"):
        run([file])

    assert not hub.sizes_asked()


def test_room_for_the_conversion_is_asked_for_before_the_download(hub, card, monkeypatch):
    """The converted weights are about as large as the files, on the same disk."""
    free = card.download_bytes + 1000
    monkeypatch.setattr("turbo.disk_space.shutil.disk_usage", lambda _: SimpleNamespace(free=free))

    with pytest.raises(OSError, match=f"{card.folder}.*Make room"):
        next(fetch_model(card))

    assert not hub.sizes_asked()


@pytest.mark.parametrize("choice, reason", [
    ("zeroes", "projection 'zeroes' .*zeros, random:SEED or the path of a file"),
    ("random:x", "projection 'random:x' "),
    (__file__, "begins with"),
])  # fmt: skip
def test_a_projection_that_is_none_is_refused_before_the_download(choice, reason, hub, tmp_path):
    card = next(card for card in CARDS if card.name == "t2v-turbo-ms")

    with pytest.raises(ValueError, match=reason):
        next(fetch_model(replace(card, folder=tmp_path), projection=choice))

    assert not hub.asked


@pytest.fixture
def card(hub, tmp_path, monkeypatch):
    """The card of a tiny T2V-Turbo-v2, offered by the local hub."""
    unet = published.videocrafter_unet(**published.V2)
    torch.save(published.publish(videocrafter_part(unet)), tmp_path / "unet_mg.pt")
    weights = published.videocrafter_checkpoint(published.videocrafter_unet())
    torch.save(weights, tmp_path / "model.ckpt")
    card = next(card for card in CARDS if card.name == "t2v-turbo-v2")
    sources = [
        hub.offer(file.path, (tmp_path / file.path).read_bytes(), gives=file.gives)
        for file in card.sources
    ]
    card = replace(card, folder=tmp_path / "weights", sources=tuple(sources))
    monkeypatch.setitem(cli.MODELS, card.name, card)
    return card


def test_a_fetched_model_is_ready(card, monkeypatch):
    monkeypatch.setattr(fetch, "CHUNK", 2**20)
    assert card.download_bytes == sum(source.size for source in card.sources)

    stages = [report.stage for report in fetch_model(card)]

    assert card.is_ready() and card.download_bytes == 0
    assert sorted(set(stages), key=stages.index) == ["download", "check", "convert"]
    with pytest.raises(ValueError, match="t2v-turbo-v2 is already in"):
        next(fetch_model(card))


def test_a_fetch_that_was_stopped_after_its_adapters_goes_on_with_the_same_command(tmp_path):
    """The adapters exist already; the same command with its projection completes the model."""
    card = next(card for card in CARDS if card.name == "t2v-turbo-ms")
    card = replace(card, folder=tmp_path)
    for part in card.parts:
        (tmp_path / part).mkdir()
        (tmp_path / part / "weights.safetensors").touch()
    assert card.missing == ["tokenizer"]

    fetch.check_request(card, "zeros")


@pytest.mark.slow
def test_a_missing_tokenizer_is_brought_back_by_what_verify_says(card, hub, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "CHUNK", 2**20)
    monkeypatch.setattr("turbo.models.verify.find_strange_size", lambda card, part: [])
    list(fetch_model(card))
    shutil.rmtree(card.folder / "tokenizer")
    hub.asked.clear()
    with pytest.raises(SystemExit):
        main(["verify", card.name])
    assert "tokenizer: 1 problems\n  missing. Fetch it: " in capsys.readouterr().out

    main(["fetch", card.name])

    assert card.is_ready()
    assert not hub.asked


def test_the_command_asks_before_gigabytes(card, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "CHUNK", 2**20)
    with pytest.raises(SystemExit, match="download is 0.0 GB. .*--yes"):
        main(["fetch", card.name])
    assert not card.is_ready()

    main(["fetch", card.name, "--yes"])

    assert card.is_ready()
    assert f"t2v-turbo-v2 is ready in {card.folder}" in capsys.readouterr().out


def test_offline_nothing_is_asked(card, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(SystemExit, match="not in the cache, and HF_HUB_OFFLINE"):
        main(["fetch", card.name, "--yes"])

    assert not hub.asked


@pytest.mark.parametrize(
    "name, reason",
    [
        ("shapes-turbo", "shapes-turbo is already in"),
        (
            "vcm-vc2",
            "'vcm' was never published. Distil it from .* convert vcm-vc2 lora.safetensors",
        ),
        ("t2v-turbo-ms", "random, frozen and never saved"),
    ],
)
def test_what_a_download_cannot_make_whole_is_refused_first(name, reason, hub, tmp_path):
    card = next(card for card in CARDS if card.name == name)
    card = card if card.family == "shapes" else replace(card, folder=tmp_path)

    with pytest.raises(ValueError, match=reason):
        next(fetch_model(card))

    assert not hub.asked


def test_a_reward_is_fetched_with_its_hash_and_refused_without(hub, tmp_path, monkeypatch, capsys):
    file = hub.offer("reward.pt", b"weights", size=2_000_000)
    card = RewardCard(title="Trial", files=(file,), load=lambda folder: torch.nn.Identity())
    monkeypatch.setitem(REWARDS, "trial", card)
    command = ["fetch", "trial", "--folder", str(tmp_path / "trial")]

    with pytest.raises(SystemExit, match="reward.pt is not known here"):
        fetch_reward(command)
    assert not hub.asked
    with pytest.raises(SystemExit, match="has changed"):
        fetch_reward([*command, "--sha256", "0" * 64])
    fetch_reward([*command, "--sha256", hashlib.sha256(b"weights").hexdigest()])

    assert (tmp_path / "trial" / "reward.pt").read_bytes() == b"weights"
    assert "Trial is ready" in capsys.readouterr().out


def test_a_reward_is_not_ready_over_a_file_that_is_another_one(hub, tmp_path, monkeypatch, capsys):
    own = hashlib.sha256(b"weights").hexdigest()
    files = (hub.offer("reward.pt", b"weights", sha256=own), hub.offer("words.txt", b"a b"))
    card = RewardCard(title="Trial", files=files, load=lambda folder: torch.nn.Identity())
    monkeypatch.setitem(REWARDS, "trial", card)
    folder = tmp_path / "trial"
    folder.mkdir()
    for name, content in [("reward.pt", b"weights"), ("words.txt", b"a b")]:
        (folder / name).write_bytes(b"damaged")
        with pytest.raises(SystemExit, match=str(folder / name)):
            fetch_reward(["fetch", "trial", "--folder", str(folder)])
        assert (folder / name).read_bytes() == b"damaged"
        (folder / name).write_bytes(content)  # by hand
    assert "ready" not in capsys.readouterr().out

    for _ in range(2):
        fetch_reward(["fetch", "trial", "--folder", str(folder)])
        assert "Trial is ready" in capsys.readouterr().out
        (folder / "reward.pt").unlink()
