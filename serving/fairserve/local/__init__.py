"""Everything on one machine without a cluster: a folder of manifests, a sidecar, an engine.

This room stands on top of both roots: it compiles manifests with the operator's own `decide` and starts
the same sidecar that runs in a pod. It imports neither kopf nor kubernetes.
"""
