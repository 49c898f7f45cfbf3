"""The only room that talks to other programs: the API server, Prometheus and the sidecars' control ports.

Clients report what happened and never decide what follows from it. The two libraries that block run in
threads of the client's own, so that one slow server can't hold up calls to another.
"""
