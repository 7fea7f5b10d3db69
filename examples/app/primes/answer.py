"""The application: counts the set bits below n in the tables."""

import pathlib
import sys

TABLES = pathlib.Path("/table")


def count_odd(table: bytes, below: int) -> int:
    first, end = (int.from_bytes(table[i : i + 8], "little") for i in (0, 8))
    # The odd numbers first + 1, first + 3, … that are smaller than below.
    wanted = max(0, min(below, end) - first) // 2
    bits = int.from_bytes(table[16 : 16 + -(-wanted // 8)], "little")
    return (bits & ((1 << wanted) - 1)).bit_count()


def count(tables: list[bytes], below: int) -> int:
    """How many primes are smaller than below."""
    return (below > 2) + sum(count_odd(table, below) for table in tables)


def main() -> None:
    tables = [path.read_bytes() for path in sorted(TABLES.iterdir())]
    for argument in sys.argv[1:]:
        print(f"{count(tables, int(argument))} primes below {argument}")
