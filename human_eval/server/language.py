"""The raters' page in the language of a study.

The page, its scripts and the refusals that raters read are written in English. A catalogue in
`pages/languages` translates them, by English sentence; a sentence may have {placeholders}.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from human_eval.definition.definition import Choice, Question

PAGES = Path(__file__).parent / "pages"
RIGHT_TO_LEFT = {"ar"}
LABELS = {
    Choice("left"): "Video 1",
    Choice("right"): "Video 2",
    Choice("tie"): "No difference",
    Choice("both_bad"): "Both are bad",
    Choice("left", 2): "Video 1 is much better",
    Choice("left", 1): "Video 1 is slightly better",
    Choice("right", 1): "Video 2 is slightly better",
    Choice("right", 2): "Video 2 is much better",
}


@dataclass(frozen=True)
class Language:
    """A language that raters read."""

    key: str  # as in the HTML attribute `lang`
    catalogue: Mapping[str, str] = field(default_factory=dict)  # by English sentence; English: none

    @property
    def direction(self) -> str:
        """The HTML attribute `dir`."""
        return "rtl" if self.key in RIGHT_TO_LEFT else "ltr"

    def translate(self, sentence: str, **values: object) -> str:
        """Translate a sentence and fill in its placeholders; unknown sentences stay English."""
        translated = self.catalogue.get(sentence, sentence)
        return translated.format(**values) if values else translated

    def render(self, template: str, **values: str) -> str:
        """Translate a page of ours, a Jinja template, and fill in its values."""
        return page_environment(self).from_string(template).render(language=self, **values)

    def script(self) -> str:
        """Return the catalogue as a module for the page's scripts."""
        return f"export default {json.dumps(dict(self.catalogue))};\n"

    def labels(self, question: Question) -> list[str]:
        """Return the labels of the choices of a question."""
        by_default = [self.translate(LABELS[choice]) for choice in question.offered]
        return list(question.labels) or by_default


def load_language(key: str) -> Language:
    """Read the catalogue of a language of `StudyDefinition`."""
    if key == "en":
        return Language(key)
    path = PAGES / "languages" / f"{key}.json"
    return Language(key, json.loads(path.read_text(encoding="utf-8")))


def page_environment(language: Language) -> jinja2.Environment:
    """Return the environment of our templates, in which `_` and {% trans %} translate."""
    made = jinja2.Environment(autoescape=True, extensions=["jinja2.ext.i18n"])
    made.policies["ext.i18n.trimmed"] = True
    made.install_gettext_callables(  # type: ignore[attr-defined]  # added by the extension
        language.translate, lambda one, many, count: many, newstyle=False
    )
    return made
