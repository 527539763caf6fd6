"""What is carried out: plain functions over torch, which travel to a server by value.

So these files import nothing but torch and one another.
"""
