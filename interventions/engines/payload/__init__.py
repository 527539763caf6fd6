"""What is carried out: plain functions over torch, all of which travel to a server by value."""

from .carry_out import carry_out, carry_out_when

__all__ = ["carry_out", "carry_out_when"]
