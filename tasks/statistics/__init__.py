"""Paired comparison, multiplicity, intervals and shift: numbers in, numbers out. Used by gate, canary and monitor alike."""
