"""The trackers that keep everything in a database; what SQLite and Postgres share."""
