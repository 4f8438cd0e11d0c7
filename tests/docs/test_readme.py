"""README is short, its links lead somewhere, and the messages that it explains are still said."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text("utf-8")
PACKAGES = ("lt_train", "data_prep", "launch")


def texts() -> set[str]:
    """Every text in the code, with "..." where values stand."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.add("".join(part if isinstance(part, str) else "..." for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) < 100


def test_the_ten_messages_are_said_somewhere():
    table = README.partition("| it says | it means |")[2].partition("\n\n")[0]
    said = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(said) == 10
    known = "\n".join(texts())
    for message in said:
        parts = filter(None, (part.strip(" '") for part in message.split("...")))
        assert all(part in known for part in parts), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, target
