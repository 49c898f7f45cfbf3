"""The simulator: the same scheduling core in front of a model of the engine, in simulated time.

It exists so that a claim about scheduling can be checked in seconds, with a seed, against schedulers that
are known to fail. It may import the core and the overload room; time is a number it advances itself and
randomness a seeded `random.Random`. Files are read at its border (`scenario`, `traces`) and nowhere else.
"""
