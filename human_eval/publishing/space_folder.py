"""The two folders of a published study: what everyone may read, and what only the study may.

space/  goes to a Space, which is public. It holds the program, and nothing about the study: neither
        its title, nor systems, prompts, clips or the answers to attention checks.
data/   goes to a private data set: a copy of the database with the definition, clips and accounts.
        The study's secret stays out of it; the Space gets it as a secret of its own.
"""

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

import human_eval
from human_eval.errors import StudyError
from human_eval.publishing.data_set import KIND, STUDY, DataSet, translated_errors
from human_eval.publishing.replica import prepare_snapshot
from human_eval.storage.keys import SECRET_VARIABLE
from human_eval.study.backup import back_up
from human_eval.study.media_check import find_lost_clips, name_lost
from human_eval.study.store import StudyStore

PORT = 7860  # on which a Space is expected to listen
DATA_SET_VARIABLE = "HUMAN_EVAL_DATA_SET"
# What human_eval imports. The versions are those of the machine that publishes.
PACKAGES = """
alembic av evalica fastapi filelock ftfy httpx2 huggingface_hub itsdangerous jinja2
krippendorff matplotlib numpy pandas pillow psycopg[binary] pyarrow pydantic pysqlite3 scipy
sqlalchemy statsmodels tabulate tqdm uvicorn
""".split()
README = """---
title: Video study
emoji: 🎞️
colorFrom: gray
colorTo: blue
sdk: docker
app_port: {port}
---

Which of two videos do people prefer? This Space serves the page of a study. The study itself is in
a private data set.
"""
# No VOLUME: an anonymous one looks like a disk that is kept, and goes with the container.
DOCKERFILE = """FROM python:3.12-slim
RUN useradd --create-home --uid 1000 study
WORKDIR /home/study/app
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY --chown=study . .
RUN mkdir -p /data && chown study /data
USER study
ENV {variable}={data_set} PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 MPLCONFIGDIR=/tmp
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m CMD ["python", "-c", \\
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:{port}/healthz', timeout=8)"]
CMD ["python", "-m", "human_eval", "host", "--host", "0.0.0.0", "--port", "{port}", \
  "--data-dir", "/data"]
"""


def write_folders(store: StudyStore, folder: Path, data_set: str) -> None:
    """Write `space/` and `data/` into a new folder.

    Raises:
        StudyError: the folder exists, or clips have no file.
    """
    if folder.exists():
        raise StudyError(f"{folder} exists already. Name another folder, or remove it.")
    if lost := find_lost_clips(store):
        raise StudyError(name_lost(lost))
    _write_space(folder / "space", data_set)
    _write_data(store, folder / "data" / STUDY)


def _write_space(space: Path, data_set: str) -> None:
    space.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "simulated_miniature")
    root = Path(human_eval.__file__).parents[1]
    for package in ("human_eval", "turbo/text_files"):
        shutil.copytree(root / package, space / package, ignore=ignored)
    for module in ("__init__.py", "display.py"):
        shutil.copyfile(root / "turbo" / module, space / "turbo" / module)
    lines = [f"{name}=={version(name.partition('[')[0])}\n" for name in PACKAGES]
    (space / "requirements.txt").write_text("".join(lines))
    (space / "README.md").write_text(README.format(port=PORT), encoding="utf-8")
    values = {"variable": DATA_SET_VARIABLE, "data_set": data_set, "port": PORT}
    (space / "Dockerfile").write_text(DOCKERFILE.format(**values))


def _write_data(store: StudyStore, study: Path) -> None:
    study.mkdir(parents=True)
    copy = back_up(store)
    shutil.copyfile(copy, study / "study.db")
    prepare_snapshot(study)
    shutil.copytree(store.media, study / "media", dirs_exist_ok=True)
    for path in store.folder.glob("*"):
        if path.name == "staff.json" or path.match("study*.toml"):
            shutil.copyfile(path, study / path.name)
    (study / "secret").touch(0o600)
    (study / "secret").write_text(store.keys.secret)
    (study / "version").write_text(f"{copy.stem}\n")


def publish(store: StudyStore, space: str, data_set: str, token: str) -> None:
    """Upload the study to a Space and a private data set, which are created if necessary.

    Raises:
        HubProblem: the Hub did not answer, or refused. The same call continues.
    """
    api = HfApi(token=token)
    with TemporaryDirectory() as place, translated_errors("The Hub"):
        folder = Path(place) / "published"
        write_folders(store, folder, data_set)
        api.create_repo(data_set, repo_type=KIND, private=True, exist_ok=True)
        DataSet(data_set, token).check_private()
        api.upload_folder(
            folder_path=folder / "data",
            repo_id=data_set,
            repo_type=KIND,
            ignore_patterns=["*/secret"],
            delete_patterns=[f"{STUDY}/*"],
            commit_message="Study",
        )
        api.create_repo(space, repo_type="space", space_sdk="docker", private=False, exist_ok=True)
        api.add_space_secret(space, SECRET_VARIABLE, store.keys.secret)
        api.upload_folder(
            folder_path=folder / "space",
            repo_id=space,
            repo_type="space",
            delete_patterns=["*"],
            commit_message="Page of the study",
        )
