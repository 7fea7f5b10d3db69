"""What a trial checks in an overlay. The trials themselves run in tests/system."""

from __future__ import annotations

import pytest

from cachedind.dataroot.overlay_trial import Unfit, check_entry_types, overlay_options
from cachedind.host import linux


@pytest.mark.parametrize("types", [{}, {"a": 8, "b": linux.DT_UNKNOWN}], ids=["nothing", "one unknown"])
def test_entries_without_their_type_are_unfit(types: dict[str, int]) -> None:
    with pytest.raises(Unfit, match=r"d_type .*ftype=1"):
        check_entry_types(types)


def test_entries_with_their_type_are_fit() -> None:
    check_entry_types({"a": 8, "b": linux.DT_CHR})


@pytest.mark.parametrize(
    ("full", "index", "more"),
    [
        (True, True, ",index=off"),
        (True, False, ""),
        (False, False, ",userxattr"),
        (False, True, ",index=off,userxattr"),
    ],
)
def test_overlay_options_are_dockerds(full: bool, index: bool, more: str) -> None:
    options = overlay_options("/w", full_user_namespace=full, has_index=index)
    assert options == f"lowerdir=/w/lower1:/w/lower2,upperdir=/w/upper,workdir=/w/work{more}"
