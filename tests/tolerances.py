"""How far two computations of the same thing may be apart, and how far an edit has to move one.

Numbers are of logits whose standard deviation is about 1, unless a test multiplies by another.
"""

# Nothing but copying, scaling and masking in float64, or a processor's own float32.
FLOAT64 = 1e-9
PREPARED = 1e-6
# One float32 forward in another order of sums. The largest difference seen was 4e-6.
EQUAL = 1e-5
# Several of those on top of each other: scores of answers, gradients, addends of a layer.
ACCUMULATED = 2e-5
# Shares of the largest value, and values that are far above 1: states, norms, large logits.
LARGE = 1e-4
# Logits and scores recomputed from what was captured, by another formula.
RECOMPUTED = 2e-4
# A constant found by experiment on a model: a scale, a multiplier.
MEASURED = 1e-3

# An edit has to move logits at least so far, or equality would say nothing.
MOVED = 1e-2
# ... in families whose logits hang less on the visual tokens.
MOVED_A_LITTLE = 1e-3
