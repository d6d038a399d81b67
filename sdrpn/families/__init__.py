"""What differs from one backbone to the next, behind one protocol; each family is a folder of its own.

Code that depends on a model's family calls `family_of(spec)`. A family may use every room of `sdrpn`, and no room
knows a family by name: `registry.py` has the table, and imports a family when it is first used.
"""
