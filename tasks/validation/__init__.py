"""One suite a problem, compiled into checks at the door and judged on windows of what landed."""
