"""The operator of fairserve: it watches Tenants, Applications and ServingPools and keeps the sidecars told.

Rooms: `api` (the models of the custom resources), `decide` and `manifests` (pure), `clients` (everything that
talks to other programs) and `handlers` (gather, decide, act). Start it with `python -m fairserve_operator`.
"""
