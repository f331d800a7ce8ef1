"""axe-core over the app's pages: what keeps people with a screen reader, a keyboard or weak eyes out.

`./fluxgym test tests/browser/test_accessibility.py` runs it; docs/studio.md lists the exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BAD = ("serious", "critical")
THEIRS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "svg-img-alt": (
        ("role-mark", "mark-"),
        "Vega gives each group of marks the role of a picture; the chart as a whole is described by its own text",
    ),
}
"""Rules that Streamlit's own widgets break: what the element's text then has in it, and why. docs/studio.md says so."""


@dataclass(frozen=True)
class Violation:
    """One element that breaks a rule of axe-core."""

    rule: str
    impact: str
    target: str
    html: str
    help: str

    @property
    def is_theirs(self) -> bool:
        """Whether it is a known fault inside of a widget of Streamlit's."""
        where, _ = THEIRS.get(self.rule, ((), ""))
        return any(part in self.html or part in self.target for part in where)


def audit(page: Any, *rules: str) -> list[Violation]:
    """Every serious or critical violation on a Playwright page, as it is shown now; of those `rules` alone."""
    from importlib.resources import files

    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        Violation(one["id"], str(one["impact"]), " ".join(map(str, node["target"])), node["html"], one["help"])
        for one in found["violations"]
        if one["impact"] in BAD
        for node in one["nodes"]
    ]
