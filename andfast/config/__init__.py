"""Training configuration: the schema, its checks, and how files and command lines are parsed into it."""
