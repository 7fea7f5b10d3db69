"""Keys as directory names: any text, no two the same, nothing that leads out of the pool."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.pool.keys import MAX_NAME_BYTES, directory_name, key_of

if TYPE_CHECKING:
    from pathlib import Path

# Surrogates too: that is how bytes that are no UTF-8 come out of the environment.
SURROGATES = st.integers(0xD800, 0xDFFF).map(chr)
KEYS = st.lists(st.one_of(st.characters(), st.characters(max_codepoint=0x7F), SURROGATES), max_size=60).map("".join)
LONG = st.builds(lambda text, times: text * times, KEYS, st.integers(1, 60))
# What the escaping itself is made of, so that near misses are found.
TRICKY = st.text(st.sampled_from("aA!%~.-_/2fFeEÿ\udcc3\udcbf\udcff\x00\u017fK"), max_size=80)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("default", "default"),
        ("main", "main"),
        ("group/project", "group%2fproject"),
        ("group/sub_group/my-project.git", "group%2fsub_group%2fmy-project.git"),
        ("MyOrg/Repo", "!my!org%2f!repo"),
        ("feature 1", "feature%201"),
        ("../../etc", "%2e.%2f..%2fetc"),
        (".", "%2e"),
        ("..", "%2e."),
        (".hidden", "%2ehidden"),
        ("-rf", "%2drf"),
        ("", "%"),
        ("%", "%25"),
        ("!a", "%21a"),
        ("~", "%7e"),
        ("/", "%2f"),
        ("\0", "%00"),
        ("ü", "%c3%bc"),
        ("\udcff", "%ed%b3%bf"),
        ("a" * 200, "a" * 200),
    ],
)
def test_names_never_change(key: str, name: str) -> None:
    """What is on disk was named by these rules; another name would be another, cold key."""
    assert directory_name(key) == name


def test_a_long_key_keeps_its_beginning_and_gets_a_digest() -> None:
    name = directory_name("group/" + "a" * 4096)
    # printf 'group/%s' "$(printf 'a%.0s' $(seq 4096))" | sha256sum
    digest = "ca202e1cab0461bf81b44d3b2c5c4587a7cccf82aae854f69f0b4558a12621bc"
    assert name == f"group%2f{'a' * 127}~{digest}"
    assert len(name) == MAX_NAME_BYTES


def test_long_keys_that_differ_at_the_end_differ() -> None:
    assert directory_name("a" * 4096 + "b") != directory_name("a" * 4096 + "c")


@given(st.one_of(KEYS, TRICKY, LONG))
def test_name_is_one_safe_component(key: str) -> None:
    name = directory_name(key)
    assert re.fullmatch(r"[a-z0-9_%!][a-z0-9._%!~-]*", name)
    assert len(os.fsencode(name)) <= MAX_NAME_BYTES
    assert name not in (".", "..")
    assert ("~" in name) == bool(re.fullmatch(r".{135}~[0-9a-f]{64}", name))


@given(st.one_of(KEYS, TRICKY))
def test_a_name_leads_back_to_its_key_unless_it_was_shortened(key: str) -> None:
    name = directory_name(key)
    assert key_of(name) == (None if "~" in name else key)


@given(st.one_of(TRICKY, st.text()))
def test_what_is_no_name_leads_to_no_key(text: str) -> None:
    key = key_of(text)
    assert key is None or directory_name(key) == text


@pytest.mark.parametrize(
    "name", ["A", "a/b", "%", "%2", "%zz", "%2B%", "!", "!!", "%61", "ß", "!ß", "%ff", "lost+found", ""]
)
def test_what_lies_about_in_a_directory_of_keys(name: str) -> None:
    assert key_of(name) == ("" if name == "%" else None)


@given(st.one_of(st.tuples(KEYS, KEYS), st.tuples(TRICKY, TRICKY), st.tuples(LONG, LONG)))
def test_two_keys_have_two_names_even_when_the_filesystem_folds_them(pair: tuple[str, str]) -> None:
    names = [unicodedata.normalize("NFKC", directory_name(key)).casefold() for key in pair]
    assert (names[0] == names[1]) == (pair[0] == pair[1])


@given(KEYS)
def test_case_and_normal_forms_are_kept_apart(key: str) -> None:
    variants = {key, key.lower(), key.upper(), key.swapcase(), key.casefold(), f".{key}", f"{key}/", f" {key}"}
    variants |= {unicodedata.normalize(form, key) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    # A name and what it was made from are two keys as well.
    variants |= {directory_name(key), key.encode("utf-8", "surrogatepass").hex()}
    assert len({directory_name(variant) for variant in variants}) == len(variants)


@given(st.integers(min_value=MAX_NAME_BYTES - 70, max_value=MAX_NAME_BYTES + 70), st.sampled_from("aA/ü"))
def test_no_short_name_is_that_of_a_long_key(length: int, letter: str) -> None:
    long = letter * (length + MAX_NAME_BYTES)
    assert directory_name(directory_name(long)) != directory_name(long)
    assert directory_name(letter * length) != directory_name(long)


def test_names_work_on_a_real_filesystem(tmp_path: Path) -> None:
    keys = [
        "",
        ".",
        "..",
        "/",
        "a",
        "A",
        "../../etc",
        "\udcff",
        "ÿ",
        "~",
        "x" * 4096,
        "X" * 4096,
        "\n",
        "-",
        "\u017f",
        "s",
    ]
    for key in keys:
        (tmp_path / directory_name(key)).mkdir()
    assert len(os.listdir(tmp_path)) == len(keys)


def test_an_ordinary_key_does_not_load_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hashlib", None)  # importing it now fails
    directory_name("group/project")
    with pytest.raises(ImportError):
        directory_name("x" * 999)
