"""The README's length, and the links of the documents."""

import re

import pytest

from tests.conftest import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md", "tools/demo_set/README.md")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
LONGEST = 160  # lines of the README


def documents():
    """The Markdown files that a reader meets."""
    return [ROOT / name for name in DOCUMENTS] + sorted((ROOT / "docs").rglob("*.md"))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document):
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
