"""How many primes are below n? Answered from tables that are computed when the image is built."""
