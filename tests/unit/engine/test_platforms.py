"""Which manifest of an index is for a machine."""

from __future__ import annotations

import pytest

from cachedind.engine.platforms import choose_manifest


def platform(architecture: str, variant: str | None = None, system: str = "linux") -> dict[str, object]:
    found: dict[str, object] = {"os": system, "architecture": architecture}
    return found if variant is None else {**found, "variant": variant}


@pytest.mark.parametrize(
    ("machine", "platforms", "expected"),
    [
        ("x86_64", [platform("arm64"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", system="windows"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", "v3"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", "v3")], None),
        ("x86_64", [platform("unknown", system="unknown")], None),
        ("x86_64", [None, platform("amd64")], 1),
        ("x86_64", [None, platform("arm64")], 0),
        ("x86_64", [platform("amd64"), platform("amd64")], 0),
        ("aarch64", [platform("amd64"), platform("arm64", "v8")], 1),
        ("armv7l", [platform("arm", "v5"), platform("arm", "v6"), platform("arm", "v7")], 2),
        ("armv7l", [platform("arm", "v5"), platform("arm", "v6")], 1),
        ("armv6l", [platform("arm", "v7"), platform("arm", "v6")], 1),
        ("armv6l", [platform("arm", "v7")], None),
        ("s390x", [platform("amd64"), platform("s390x")], 1),
        ("x86_64", [], None),
    ],
)
def test_the_manifest_for_a_machine_is_chosen(
    machine: str, platforms: list[dict[str, object] | None], expected: int | None
) -> None:
    manifests = [{"digest": str(number), "platform": each} for number, each in enumerate(platforms)]
    assert choose_manifest(manifests, machine) == (None if expected is None else str(expected))


@pytest.mark.parametrize(
    "manifests", [None, 7, {}, [None, 7, {}, {"digest": 7}, {"digest": "x", "platform": {"os": []}}]]
)
def test_an_index_that_makes_no_sense_has_none(manifests: object) -> None:
    assert choose_manifest(manifests, "x86_64") is None


def test_an_attestation_is_not_chosen_whatever_its_platform() -> None:
    note = {"vnd.docker.reference.type": "attestation-manifest"}
    attestation = {"digest": "a", "platform": platform("amd64"), "annotations": note}
    assert choose_manifest([attestation, {"digest": "b", "platform": platform("amd64")}], "x86_64") == "b"
