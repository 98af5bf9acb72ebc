"""The shape of the repository: who may import whom, and how long things may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"app", "demo", "human_eval", "training", "turbo"}
FORBIDDEN = {
    "turbo": PACKAGES - {"turbo"} | {"gradio", "sqlalchemy", "pandas"},
    "human_eval": PACKAGES - {"human_eval"} | {"torch", "diffusers", "gradio"},
    "training": {"app", "demo", "human_eval", "gradio"},
    "demo": {"app", "training", "turbo", "torch", "diffusers"},
    "app": {"training"},
}
NAMELESS = {"base", "common", "core", "helper", "helpers", "misc", "util", "utils"}
MAX_FILE, MAX_FUNCTION = 400, 60  # lines

OURS = [
    path
    for package in sorted(PACKAGES)
    for path in [*ROOT.glob(f"{package}.py"), *sorted((ROOT / package).rglob("*.py"))]
]
files = pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))


def _imports(tree: ast.AST) -> set[str]:
    """Return the top-level package of every import, also of those inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found.add(node.module.partition(".")[0])
    return found


@files
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")

    assert not _imports(ast.parse(path.read_text())) & FORBIDDEN[package]


@files
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert len(source.splitlines()) <= MAX_FILE
    for function in functions:
        assert function.end_lineno - function.lineno < MAX_FUNCTION, function.name


@files
def test_files_are_named_after_a_noun(path):
    assert not NAMELESS & {*path.relative_to(ROOT).with_suffix("").parts}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_forbidden_import_would_be_seen(package):
    culprit = sorted(FORBIDDEN[package])[0]

    assert culprit in _imports(ast.parse(f"def hidden():\n    from {culprit}.part import thing"))
