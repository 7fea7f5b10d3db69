"""How long a private daemon may take to answer."""

from __future__ import annotations

from cachedind.engine import proof


def test_the_time_of_a_proof_grows_with_the_data_and_has_an_end() -> None:
    assert proof.proof_s(0, 0) == proof.PROOF_S
    assert proof.proof_s(256 << 20, 1000) > proof.PROOF_S + 100
    assert proof.proof_s(1 << 40, 1 << 20) == proof.MAX_PROOF_S
