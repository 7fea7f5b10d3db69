import unittest

from primes import answer, sieve


def table(first: int, end: int) -> bytes:
    return first.to_bytes(8, "little") + end.to_bytes(8, "little") + sieve.pack(sieve.sieve(first, end))


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


class Primes(unittest.TestCase):
    def test_each_small_number_against_trial_division(self) -> None:
        tables = [table(0, 1000), table(1000, 4000)]
        expected = 0
        for n in range(4000):
            assert answer.count(tables, n) == expected, n
            expected += is_prime(n)

    def test_a_large_range_against_trial_division(self) -> None:
        first, end = 999_950_000, 1_000_000_000
        expected = [is_prime(n) for n in range(first + 1, end, 2)]
        assert list(map(bool, sieve.sieve(first, end))) == expected

    def test_known_values(self) -> None:
        tables = [table(0, 1_000_000), table(1_000_000, 10_000_000)]
        assert answer.count(tables, 1_000_000) == 78_498
        assert answer.count(tables, 10_000_000) == 664_579
