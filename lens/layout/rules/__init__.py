"""How visual tokens can be laid out: one rule a file, tried in the order of order.py."""
