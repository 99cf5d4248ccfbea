from tests.agent.sandbox.jobs import assignment, place

__all__ = ["assignment", "place"]
