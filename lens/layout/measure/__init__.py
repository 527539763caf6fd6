"""Layouts measured on the processor itself, by showing it painted images."""
