"""An engine for trying out and for tests: vLLM's API and scheduling shape, no model.

`steps` is the pure token-step model, `driver` runs it in real time, `server` is its HTTP.
"""
