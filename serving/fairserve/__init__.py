"""fairserve: fair LLM serving in front of vLLM.

The rooms, from the inside out: `core` decides order and refusals, `overload` decides when the pool is
overloaded, `config` is what the operator writes and the sidecar reads, `engine` is what is known of
vLLM, `sidecar` is the HTTP front of one engine, `local` runs all of it on one machine.
"""

__version__ = "0.1.0"
