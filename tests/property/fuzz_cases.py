"""How many bent requests, bodies and words of the operator's the fuzz tests try."""

HEADS, BODIES, CONTROL = 40_000, 50_000, 15_000

# Fewer than this in all is not what the sidecar promises.
assert HEADS + BODIES + CONTROL >= 100_000
