"""Whole jobs: what a verb of the command line does, as one function on a request.

This room alone joins stages: it may import sdrpn.export, sdrpn.engines and sdrpn.runtime. It knows no command line and
prints nothing. A request is a frozen dataclass, progress a callable `(done, total)`, and what was found is returned;
libraries that an extra brings are imported by the functions that need them.
"""
