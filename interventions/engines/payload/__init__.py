"""What is carried out: plain functions over torch, all of which travel to a server by value."""
