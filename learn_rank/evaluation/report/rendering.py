"""Fills the templates of pages: names of the data are escaped, so that no reader obeys them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from learn_rank.evaluation.report.figures import axis_strip, forest_axis, forest_strip, is_stretched
from learn_rank.evaluation.report.marks import code, plain
from learn_rank.evaluation.report.wording import MINUS, MISSING, share_text
from learn_rank.printable import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **names: Any) -> str:
    """A template with what it names filled in; in `.html.jinja` all text is escaped."""
    environment = _environment(is_html=template.endswith(".html.jinja"))
    return environment.get_template(template).render(missing=MISSING, **names)


@cache  # it holds the compiled templates
def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        finalize=_shown if is_html else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "minus": _minus,
        "share": share_text,
        "md": plain,
        "code": code,
        "json": lambda content: json.dumps(content, default=str),
    }
    environment.globals |= {figure.__name__: figure for figure in (axis_strip, forest_axis, forest_strip, is_stretched)}
    return environment


def _shown(value: Any) -> Any:
    """A value of a page without characters that its reader would obey or not see."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _minus(text: str) -> Markup:
    """Escaped, with true minus signs before numbers."""
    return Markup(re.sub(r"(?<![\w.)\]])-(?=\d)", MINUS, str(escape(_shown(text)))))
