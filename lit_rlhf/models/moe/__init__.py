"""Mixtures of experts: routers, their balance and their replay, adapters on experts, experts in 4 bits."""
