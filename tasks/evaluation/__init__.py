"""What may be released: models compared on the same sealed rows, and the policy turned into a verdict."""
