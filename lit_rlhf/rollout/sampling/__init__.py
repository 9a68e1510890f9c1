"""Samplers: what draws responses from a policy, and what it is asked for."""
