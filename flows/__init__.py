"""When, and in which order: the only rooms that import Prefect."""
