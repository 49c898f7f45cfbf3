"""What users write and what they are told, as models. Imports pydantic and nothing else."""
