"""The table of scripts/engine-check."""

from __future__ import annotations

from engine_table import read, table

REPORT = """<testsuites><testsuite>
<testcase classname="tests.image.test_pool" name="test_a[ext4]" time="1.5"/>
<testcase classname="tests.image.test_pool" name="test_b" time="2.0"><failure message="no">trace</failure></testcase>
<testcase classname="tests.image.test_seeds" name="test_c" time="0.4"><properties/></testcase>
</testsuite></testsuites>"""


def test_each_subject_has_a_row_and_what_failed_a_line() -> None:
    head, pool, seeds, failed = table("29.7.2", read(REPORT)).splitlines()
    assert head.split() == ["engine", "29.7.2", "passed", "failed", "seconds"]
    assert pool.split() == ["pool", "1", "1", "4"]
    assert seeds.split() == ["seeds", "1", "0", "0"]
    assert failed.strip() == "failed: test_pool::test_b"
