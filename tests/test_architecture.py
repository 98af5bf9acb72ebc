"""The structure of the repository: who may import whom, no cycles, no crowded folders."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {"app", "demo", "human_eval", "training", "turbo"}
FORBIDDEN = {
    "turbo.text_files": TOP - {"turbo"} | {"torch", "gradio", "sqlalchemy", "pandas"},
    "turbo.display": TOP - {"turbo"} | {"torch", "gradio", "sqlalchemy", "pandas"},
    "turbo": TOP - {"turbo"} | {"gradio", "sqlalchemy", "pandas"},
    "human_eval": TOP - {"human_eval", "turbo"} | {"torch", "diffusers", "gradio"},
    "human_eval.statistics": {"sqlalchemy"},
    "training": {"app", "demo", "gradio"},
    "demo": {"app", "training", "torch", "diffusers"},
    "app": {"training"},
}
# Each package may import itself and those before it. A name without a folder is a module.
ORDER = {
    "turbo.text_files": ["decoding", "tables", "prompts"],
    "turbo": [
        "types",
        "text_files",
        "display",
        "whole_file",
        "manifest",
        "provenance",
        "video",
        "disk_space",
        "card",
        "request",
    ]
    + ["networks", "diffusion", "convert", "models", "pipeline", "rewards", "batch"]
    + ["generate", "vbench"],
    "human_eval": [
        "errors",
        "definition",
        "hosting",
        "storage",
        "statistics",
        "clips",
        "collection",
    ]
    + ["study", "reporting", "mturk", "server", "publishing", "cli", "__main__"],
    "training.shapes": ["world", "models", "evaluation", "__main__"],
}
# The seams between the three products, module by module.
SEAMS = {
    ("human_eval", "turbo"): {
        "human_eval.definition.prompts",
        "human_eval.clips.media",
        "human_eval.clips.sources",
        "human_eval.mturk.batches",
        "human_eval.reporting.foreign_records",
        "human_eval.reporting.judge_scores",
        "human_eval.study.pay",
    },
    ("demo", "turbo"): {"demo.models"},
    ("training", "human_eval"): {
        "training.flywheel.__main__",
        "training.flywheel.results",
        "training.flywheel.settings",
        "training.flywheel.studies",
        "training.shapes.evaluation.intervals",
        "training.shapes.evaluation.judge_study",
        "training.reward.__main__",
        "training.reward.comparisons",
        "training.reward.measurements",
    },
}
MAX_FILES = 15  # Python files of one folder
NAMELESS = {"base", "common", "core", "helper", "helpers", "misc", "util", "utils"}


def _name(path: Path) -> str:
    """Return a file's dotted name; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = {
    _name(path): path
    for top in sorted(TOP)
    for path in [*ROOT.glob(f"{top}.py"), *sorted((ROOT / top).rglob("*.py"))]
}


def _imports(source: str) -> set[str]:
    """Return the full name of everything imported, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _module_of(name: str) -> str | None:
    """Return which of our modules holds an imported name; None for a library's."""
    while name not in OURS:
        name, _, last = name.rpartition(".")
        if not name:
            return None
    return name


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache  # and not on import: every process of pytest imports this file, and one runs its tests
def all_imports() -> dict[str, set[str]]:
    """Return what every module of ours imports."""
    return {module: _imports(path.read_text()) for module, path in OURS.items()}


@cache
def _graph() -> dict[str, set[str]]:
    """Return which modules of ours every module of ours imports."""
    return {
        module: {found for name in names if (found := _module_of(name)) not in (None, module)}
        for module, names in all_imports().items()
    }


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_not_import(package):
    others = FORBIDDEN[package]

    assert not [
        f"{module} imports {name}"
        for module, names in all_imports().items()
        for name in names
        if _is_in(module, package) and name.partition(".")[0] in others
    ]


@pytest.mark.parametrize("package", ORDER)
def test_every_part_of_a_package_has_its_place(package):
    folder = ROOT / package.replace(".", "/")
    parts = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    parts |= {path.parent.name for path in folder.glob("*/__init__.py")}

    assert parts == set(ORDER[package])


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_downward(package):
    rank = {f"{package}.{part}": number for number, part in enumerate(ORDER[package])}

    def rank_of(module: str) -> int | None:
        return next((rank[part] for part in rank if _is_in(module, part)), None)

    assert not [
        f"{module} imports {name}"
        for module, names in _graph().items()
        for name in names
        if (mine := rank_of(module)) is not None
        and (other := rank_of(name)) is not None
        and other > mine
    ]


@pytest.mark.parametrize("package, other", SEAMS)
def test_products_meet_at_their_seam_alone(package, other):
    importers = {
        module
        for module, names in _graph().items()
        if _is_in(module, package) and any(_is_in(name, other) for name in names)
    }

    assert importers <= SEAMS[package, other]


def test_the_study_takes_only_the_readers_of_files_and_frames_from_the_library():
    assert not [
        f"{module} imports {name}"
        for module, names in _graph().items()
        for name in names
        if _is_in(module, "human_eval")
        and _is_in(name, "turbo")
        and not (_is_in(name, "turbo.text_files") or _is_in(name, "turbo.display"))
    ]


def test_imports_form_no_cycle():
    try:
        list(TopologicalSorter(_graph()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_is_crowded():
    files = Counter(
        path.parent.relative_to(ROOT)
        for top in sorted(TOP | {"tests"})
        for path in (ROOT / top).rglob("*.py")
    )

    assert {folder: count for folder, count in files.items() if count > MAX_FILES} == {}


def test_files_are_named_after_what_they_hold():
    assert not [module for module in OURS if NAMELESS & set(module.split("."))]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_hidden_import_would_be_seen(package):
    culprit = sorted(FORBIDDEN[package])[0]

    assert f"{culprit}.part.thing" in _imports(
        f"def hidden():\n    from {culprit}.part import thing"
    )
