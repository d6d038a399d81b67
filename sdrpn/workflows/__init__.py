"""Whole jobs: what a verb of the command line does, as a function.

This room alone joins stages: it may import sdrpn.export, sdrpn.engines and sdrpn.runtime. It knows no command line and
prints nothing. Where a job has many arguments, there are two forms of it: one that programs call with arguments by name
(`plan_memory`), and one on a frozen request, which a verb makes (`plan`). What was found is returned. Libraries that an
extra brings are imported by the functions that need them.
"""
