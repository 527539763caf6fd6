"""From a name, a folder or a model in memory to a verified model under nnsight."""
