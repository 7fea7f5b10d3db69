"""dockerd's command line is taken apart as pflag does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.errors import DaemonConfigError
from cachedind.settings.arguments import SHORT, SWITCHES, DaemonArguments, parse_daemon_arguments

Pairs = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("words", "pairs", "rest"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param(["--mtu=1400"], [("mtu", "1400")], [], id="long with ="),
        pytest.param(["--mtu", "1400"], [("mtu", "1400")], [], id="long with a separate value"),
        pytest.param(["--mtu="], [("mtu", "")], [], id="long with an empty value"),
        pytest.param(["--label=a=b"], [("label", "a=b")], [], id="only the first = separates"),
        pytest.param(["--label= a "], [("label", " a ")], [], id="a value is taken as it is"),
        pytest.param(["--tls"], [("tls", "true")], [], id="switch"),
        pytest.param(["--tls=false"], [("tls", "false")], [], id="switch off"),
        pytest.param(["--tls", "false"], [("tls", "true")], ["false"], id="a switch takes no separate value"),
        pytest.param(["-H", "unix://"], [("host", "unix://")], [], id="short with a separate value"),
        pytest.param(["-Hunix://"], [("host", "unix://")], [], id="short with an attached value"),
        pytest.param(["-H=unix://"], [("host", "unix://")], [], id="short with ="),
        pytest.param(["-D"], [("debug", "true")], [], id="short switch"),
        pytest.param(["-D=false"], [("debug", "false")], [], id="short switch off"),
        pytest.param(["-DH", "x"], [("debug", "true"), ("host", "x")], [], id="short ones together"),
        pytest.param(["-DHx"], [("debug", "true"), ("host", "x")], [], id="short ones together, value attached"),
        pytest.param(["-DH=x"], [("debug", "true"), ("host", "x")], [], id="short ones together, value with ="),
        pytest.param(["-HD"], [("host", "D")], [], id="a letter after one that takes a value is the value"),
        pytest.param(["-H", "--debug"], [("host", "--debug")], [], id="a value may look like a flag"),
        pytest.param(["--host", "--"], [("host", "--")], [], id="a value may be --"),
        pytest.param(["-D", "--", "-H", "x"], [("debug", "true")], ["--", "-H", "x"], id="-- ends the flags"),
        pytest.param(["-D", "-", "-H"], [("debug", "true")], ["-", "-H"], id="a lone - is no flag"),
        pytest.param(["-D", "info", "-l"], [("debug", "true")], ["info", "-l"], id="a bare word ends the flags"),
        pytest.param(["--unknown-thing", "v"], [("unknown-thing", "v")], [], id="an unknown flag takes a value"),
        pytest.param(["-s", "vfs"], [("storage-driver", "vfs")], [], id="-s is --storage-driver"),
        pytest.param(["-g", "/data"], [("g", "/data")], [], id="an unknown letter keeps its name"),
    ],
)
def test_parse_daemon_arguments(words: list[str], pairs: Pairs, rest: list[str]) -> None:
    parsed = parse_daemon_arguments(words)
    assert [(flag.name, flag.value) for flag in parsed.flags] == pairs
    assert list(parsed.rest) == rest


@pytest.mark.parametrize("words", [["--mtu"], ["-H"], ["-DH"], ["-D", "--data-root"]], ids=" ".join)
def test_a_flag_at_the_end_without_its_value_is_named(words: list[str]) -> None:
    with pytest.raises(DaemonConfigError, match=words[-1]) as caught:
        parse_daemon_arguments(words)
    assert caught.value.exit_code == 78


def test_the_last_of_several_values_counts() -> None:
    parsed = parse_daemon_arguments(["-s", "vfs", "--storage-driver=overlay2", "-H", "a", "-H", "b"])
    assert parsed.last("storage-driver") == "overlay2"
    assert parsed.last("mtu") is None
    assert parsed.all("host") == ["a", "b"]
    assert parsed.has("mtu", "host")
    assert not parsed.has("mtu")


@pytest.mark.parametrize("word", ["-D-", "-D-0", "-D-tls"])
def test_a_dash_among_one_letter_flags_is_refused_as_dockerd_refuses_it(word: str) -> None:
    with pytest.raises(DaemonConfigError, match=word):
        parse_daemon_arguments([word])


def test_dropped_flags_take_their_words_along_and_leave_the_others_alone() -> None:
    parsed = parse_daemon_arguments(["-DH", "x", "--host=y", "--mtu", "1400", "--", "z"])
    kept = parsed.without([flag for flag in parsed.flags if flag.name == "host"])
    assert kept.words == ["-D", "--mtu", "1400", "--", "z"]


@pytest.mark.parametrize(
    ("words", "informational"),
    [
        (["--version"], True),
        (["-v"], True),
        (["-h"], True),
        (["-D", "--validate"], True),
        (["--validate=false"], False),
        (["--data-root", "--version"], False),
        (["--", "--version"], False),
        ([], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_with_which_dockerd_only_tells_something(words: list[str], informational: bool) -> None:
    assert parse_daemon_arguments(words).is_informational is informational


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["--", "-", "-D", "-H", "-DH", "-s", "--tls", "--tls=false", "--host", "--feature", "-="]),
        st.builds("--{}={}".format, st.sampled_from(sorted(SWITCHES | set(SHORT.values()))), st.text(max_size=4)),
        st.builds("-{}{}".format, st.sampled_from(sorted(SHORT)), st.text(max_size=4)),
        st.text(max_size=6),
    ),
    max_size=8,
)


def flags_of(arguments: DaemonArguments) -> Pairs:
    return [(flag.name, flag.value) for flag in arguments.flags]


@given(WORDS)
def test_whatever_the_words_dockerd_gets_the_same_meaning_again(words: list[str]) -> None:
    try:
        parsed = parse_daemon_arguments(words)
    except DaemonConfigError:
        return
    again = parse_daemon_arguments(parsed.words)
    assert flags_of(again) == flags_of(parsed)
    assert again.rest == parsed.rest
