"""The tables of docs/settings.md, from the fields of the settings and their docstrings.

``python -m voxout.pipeline.config.settings_page docs/settings.md`` brings the page up to date.
"""

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...data_manifests.atomic_write import atomic_write
from ...data_manifests.settings import Section
from .config import AllSettings

MARK = "<!-- From here on made from the docstrings of the settings by `make docs`. -->\n"
_DOCS_LINK = re.compile(r"docs/([a-z-]+\.md)(#[a-z-]+)?")
_HEADER = "| setting | default | allowed | meaning |\n|---|---|---|---|\n"


def current_page(page: str) -> str:
    """Return the page with current tables below its `MARK`."""
    return page.partition(MARK)[0] + MARK + "".join(_tables(AllSettings))


def _tables(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the heading and the table of a section, then those of its inner sections."""
    inner, rows, meanings = {}, [], _field_docstrings(section)
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner[name] = field.annotation
            continue
        default, allowed = _text(field.default), _allowed(schema["properties"][name])
        rows.append(f"| `{prefix}{name}` | {default} | {allowed} | {_linked(meanings[name])} |\n")
    title = prefix.rstrip(".") or "The run"
    yield f"\n{'###' if '.' in title else '##'} {title}\n\n{_linked(inspect.getdoc(section) or '')}\n"
    if rows:
        yield "\n" + _HEADER + "".join(rows)
    for name, each in inner.items():
        yield from _tables(each, f"{prefix}{name}.")


def _field_docstrings(section: type[Section]) -> dict[str, str]:
    """Return the docstring below each field, on one line."""
    found = {}
    for base in section.__bases__:  # a section may extend another one
        if issubclass(base, Section) and base is not Section:
            found |= _field_docstrings(base)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _linked(text: str) -> str:
    """Turn mentions of other pages into links."""
    return _DOCS_LINK.sub(lambda match: f"[docs/{match[1]}]({match[1]}{match[2] or ''})", " ".join(text.split()))


def _text(default: object) -> str:
    """Return a default as it is written after ``--set NAME=``."""
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default if isinstance(default, str) and default else json.dumps(default)}`"


def _allowed(schema: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if schema["type"] == "array":
        return f"list of {_allowed(schema['items'])}"
    if schema["type"] == "boolean":
        return "`true`, `false`"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return " ".join(["text" if schema["type"] == "string" else schema["type"], " and ".join(limits)]).strip()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    page = current_page(path.read_text(encoding="utf-8"))
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
