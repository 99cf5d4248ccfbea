from tests.agent.sandbox.jobs import place

__all__ = ["place"]
