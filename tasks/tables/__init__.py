"""Delta tables: what they hold, who may read a person in them, how a commit is made."""
