"""What tests of all folders share: servers of others, waiting without sleeping, and what a test may not leave over."""
