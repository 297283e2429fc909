"""The tracker that keeps everything in one SQLite file."""
