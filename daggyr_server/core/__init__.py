"""The pure core: graph, run machine, scheduling. It imports the standard library only, and no asyncio, os, clock or random."""
