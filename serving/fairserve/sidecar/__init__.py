"""The HTTP front of one engine: everything that reads the clock, opens sockets or logs. See sidecar.md.

One event loop writes all state. The data port is raw protocols on both sides (`server`, `upstream`); the
scheduler's decisions come from `fairserve.core` and are carried out by `dispatch`; `proxy` ties a client's
request to them. The control port is an ordinary web application (`control`).
"""
