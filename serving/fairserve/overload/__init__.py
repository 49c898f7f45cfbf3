"""When is a pool, or a pod, overloaded? Pure: readings and the time come in, verdicts go out.

`machine` turns signals into one verdict (the operator's and local mode's), `lease` is a sidecar's memory of
the operator's last verdict, `saturation` a pod's own view of itself. No clock, no HTTP, no Prometheus here.
"""
