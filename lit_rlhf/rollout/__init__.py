"""Rollouts: a policy and prompts make responses, responses make minibatches."""
