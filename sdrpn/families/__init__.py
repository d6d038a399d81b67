"""What differs from one backbone to the next, behind one protocol; each family is a folder of its own.

Whoever needs something of a model's kind asks `family_of(spec)`. A family may use every room of `sdrpn`, and none
of them knows a family by name: `registry.py` has the table, and imports a family when it is asked for.
"""
