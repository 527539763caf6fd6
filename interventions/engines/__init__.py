"""What binds a program to a host, one file each: nnsight, here and remotely; TransformerLens."""
