"""From decisions to Kubernetes objects as plain dicts: pure, no client, no clock."""
