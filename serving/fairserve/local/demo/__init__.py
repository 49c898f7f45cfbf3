"""`fairserve demo`: two teams, a flood, and what fairserve makes of it, measured and judged in a minute.

`story` says what happens, `observation` watches the sidecar, `screen` shows it, `verdict` judges.
"""
