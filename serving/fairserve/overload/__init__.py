"""Pure overload decisions."""
