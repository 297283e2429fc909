"""The tracker that keeps everything in a Postgres database."""
