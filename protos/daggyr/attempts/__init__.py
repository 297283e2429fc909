"""The rules of one attempt, which agents and executors share: how its end is judged, how it is named, what of it is kept.

Each module here is one rule. The agent and the executors of the server call them, and nothing here imports either side.
"""
