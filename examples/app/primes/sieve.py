"""Computes a table: one bit for each odd number of a range, set where it is prime.

Run as `python3 -m primes.sieve FIRST END FILE`.
"""

import math
import pathlib
import sys

# At a time, for the memory's sake; a multiple of 16, so that each ends with a whole byte of the table.
CHUNK = 10_000_000


def odd_primes(end: int) -> list[int]:
    """The odd primes below end."""
    is_prime = bytearray(b"\x01") * end
    for n in range(3, math.isqrt(end) + 1, 2):
        if is_prime[n]:
            is_prime[n * n :: 2 * n] = bytes(len(range(n * n, end, 2 * n)))
    return [n for n in range(3, end, 2) if is_prime[n]]


def sieve(first: int, end: int) -> bytearray:
    """One byte for each odd number of [first, end), 1 where it is prime; first and end are even."""
    is_prime = bytearray(b"\x01") * ((end - first) // 2)
    if first == 0:
        is_prime[0] = 0  # 1 is no prime
    for p in odd_primes(math.isqrt(end) + 1):
        multiple = max(p * p, -(-first // p) * p)
        if multiple % 2 == 0:
            multiple += p
        start = (multiple - first) // 2
        is_prime[start::p] = bytes(len(range(start, len(is_prime), p)))
    return is_prime


def pack(is_prime: bytearray) -> bytes:
    """Eight of its bytes to one, the first in the lowest bit."""
    digits = is_prime.translate(bytes([48, 49]) + bytes(254))  # 0 and 1 as text, to be read as a binary number
    return int(digits[::-1], 2).to_bytes(-(-len(is_prime) // 8), "little")


def main() -> None:
    first, end, path = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    path.parent.mkdir(parents=True, exist_ok=True)
    found = 0
    with path.open("wb") as table:
        table.write(first.to_bytes(8, "little") + end.to_bytes(8, "little"))
        for start in range(first, end, CHUNK):
            is_prime = sieve(start, min(start + CHUNK, end))
            found += sum(is_prime)
            table.write(pack(is_prime))
    print(f"{found} odd primes from {first} to {end}")


if __name__ == "__main__":
    main()
