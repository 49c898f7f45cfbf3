"""What is known of vLLM: its metrics, its request bodies, its usage reports. Bytes in, values out; no I/O."""
