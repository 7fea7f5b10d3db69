"""The table of variables, and the one in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from cachedind.settings.variables import markdown_table

ENVIRONMENT_PAGE = Path(__file__).parents[3] / "docs" / "environment.md"


def test_the_table_in_the_documentation_is_the_generated_one() -> None:
    page = ENVIRONMENT_PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- variables -->\n+(.*?)\n*<!-- /variables -->", page, re.DOTALL)
    assert found, f"{ENVIRONMENT_PAGE.name} has no table between <!-- variables --> and <!-- /variables -->"
    assert found[1].strip() == markdown_table().strip()
