"""From objects and what is observed of the world to what should be: pure.

Nothing here reads a clock, a file or the API server; handlers and `fairserve.local` gather, ask and act.
"""
