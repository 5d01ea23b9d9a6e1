"""One static HTML page: templates rendered with a content security policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medfed.report import names

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, content: Mapping[str, object]) -> str:
    """Return the page of ``template``; the one script it carries is named by hash, so no other can run."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": names.count, "duration": names.duration}
    script = (TEMPLATES / "theme.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **content,
    )
