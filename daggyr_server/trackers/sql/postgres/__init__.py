"""The postgres tracker: everything in a Postgres database."""
