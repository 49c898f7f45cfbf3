"""The real parts that tests and `make demo-cluster` start on a bare machine.

A Kubernetes control plane and a Prometheus are built from Go modules, a vLLM is installed from its lock.
Each is prepared once, kept in a cache, and started as an ordinary process that listens on loopback only.
Nothing here needs root, a container engine or a package manager other than Go's and Python's.
"""
