from typing import Any
class PilotExecutor:
    pass
