"""A bundle as tools for agents, over the Model Context Protocol: look, ask and crop on pictures below a folder.

May import the rest of the runtime, never the HTTP server beside it. `mcp`, of the extra of that name, is imported by
`server.py` alone.
"""
