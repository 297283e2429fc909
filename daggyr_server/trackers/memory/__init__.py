"""The tracker that keeps everything in memory."""
