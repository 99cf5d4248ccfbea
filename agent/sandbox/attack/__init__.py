"""An attacker, run by the agent in its own sandbox (`python -m attack walls|gate|hog …`).

Standard library only, and nothing of the agent: it sees what a stranger's job sees. Every attempt
is chosen so that it does no harm where it succeeds.
"""
