"""Stand-ins that tests control to the byte. Contention and real tokens come from the emulator and vLLM."""
