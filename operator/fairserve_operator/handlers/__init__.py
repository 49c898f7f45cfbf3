"""Gather, decide, act: the room that runs.

kopf's watches feed the `store`; each change marks its namespace, and after a short pause `reconciliation`
compiles the namespace's pools, writes their boot Secrets and aims their `delivery` at the new document.
`publication` turns what the sidecars acknowledged into status. `overload` asks Prometheus and tells the
sidecars. `loop` owns the tasks. Only `registration` and `watching` import kopf.
"""
