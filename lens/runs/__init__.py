"""One forward, many that share work, generation, scoring; what they return and how it is saved."""
