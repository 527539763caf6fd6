"""What a plan compiles to: typed steps, what they use, contradict and cost."""
