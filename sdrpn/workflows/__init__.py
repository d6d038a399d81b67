"""Whole jobs: what each verb of the command line does, as a function.

This room alone joins stages: it may import sdrpn.export, sdrpn.engines and sdrpn.runtime. It knows no command line and
prints nothing; results are returned. A job with many arguments has two forms: one with keyword arguments for programs
(`plan_memory`), and one that takes a frozen request, which a verb makes (`plan`). Libraries of an extra are imported by
the functions that need them.
"""
