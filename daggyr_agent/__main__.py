"""`python -m daggyr_agent` is `daggyr-agent`."""

from .main import main

main()
