"""What the tests share. Start with helpers.dind (a cachedind container) and helpers.engine (where it runs)."""
