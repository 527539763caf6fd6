"""How visual tokens can be laid out, one rule a file."""
