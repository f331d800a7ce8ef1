"""docs/architecture.md is the map: what it names is there, and every folder of the product is named. No link is dead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks() -> list[str]:
    """Its bullets and table rows, each with the lines that belong to it."""
    return re.split(r"\n(?=- |\| |\n)", MAP)


def paths_in(block: str) -> list[str]:
    """What stands in code and looks like a file or folder of the project."""
    words = re.findall(r"`([\w./-]+)`", block)
    return [word for word in words if word.endswith((".py", "/")) or (ROOT / word.partition("/")[0]).is_dir()]


def test_every_path_on_the_map_exists() -> None:
    missing, found = [], 0
    for block in blocks():
        named = paths_in(block)
        folders = [ROOT / name for name in named if (ROOT / name).is_dir()]
        for name in named:
            found += 1
            if not any((folder / name).exists() for folder in (ROOT, *folders)):
                missing.append(name)
    assert not missing and found > 40


def test_every_folder_of_the_product_is_on_the_map() -> None:
    named = {name.rstrip("/") for block in blocks() for name in paths_in(block)}
    packages = [*ROOT.glob("*/__init__.py"), *(ROOT / "fluxcore").glob("*/__init__.py")]
    folders = {str(file.parent.relative_to(ROOT)) for file in packages} - {"fluxcore", "tests"}
    assert folders and folders <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
